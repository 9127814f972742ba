"""SimCSE's protocol as an evaluator of sentence-transformers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from tests import reference
from tests.sentence_transformers.columns import COLUMNS, logged, trainer

pytest.importorskip("sentence_transformers")

from hsplugin_sentence_transformers import AlignUniformLoss, GeometryEvaluator

FIRST, SECOND = COLUMNS["anchor"], COLUMNS["positive"]
SCORES = [5.0, 4.0, 3.9, 4.4, 0.0]


def test_close_pairs_align_and_all_sentences_are_uniform(model):
    values = GeometryEvaluator(FIRST, SECOND, SCORES, threshold=4)(model)
    x, y = (normalize(model.encode(s, convert_to_tensor=True).double()) for s in (FIRST, SECOND))
    close = torch.tensor([0, 1, 3])
    alignment = reference.align(x[close], y[close], 2).item()
    uniformity = reference.log_mean_potential(torch.cat([x, y]), 2.0).item()
    assert values["alignment"] == pytest.approx(alignment, rel=1e-5)
    assert values["uniformity"] == pytest.approx(uniformity, rel=1e-5)
    assert values["align_uniform"] == pytest.approx(alignment + uniformity, rel=1e-5)
    probabilities = torch.linalg.svdvals(torch.cat([x, y]))
    probabilities = probabilities / probabilities.sum()
    entropy = -(probabilities * probabilities.log()).sum()
    assert values["rankme"] == pytest.approx(entropy.exp().item(), rel=1e-3)


def test_without_scores_all_pairs_mean_the_same_and_dimensions_can_be_cut(model):
    values = GeometryEvaluator(FIRST, SECOND, truncate_dim=6)(model)
    x, y = (model.encode(s, convert_to_tensor=True)[:, :6].double() for s in (FIRST, SECOND))
    expected = reference.align(normalize(x), normalize(y), 2).item()
    assert values["alignment"] == pytest.approx(expected, rel=1e-5)


def test_names_rows_and_the_primary_metric_are_as_of_their_evaluators(model, tmp_path: Path):
    evaluator = GeometryEvaluator(FIRST, SECOND, SCORES, threshold=4, name="sts")
    rows = [evaluator(model, str(tmp_path / "new"), epoch, 10 * epoch) for epoch in (1, 2)]
    assert evaluator.primary_metric == "sts_align_uniform"
    assert not evaluator.greater_is_better
    with (tmp_path / "new" / "geometry_evaluation_sts_results.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(row["epoch"], row["steps"]) for row in written] == [("1", "10"), ("2", "20")]
    for row, values in zip(written, rows, strict=True):
        assert {f"sts_{name}": float(row[name]) for name in list(row)[2:]} == values


def test_the_trainer_keeps_the_checkpoint_that_the_primary_metric_prefers(model, tmp_path: Path):
    trained = trainer(
        model,
        AlignUniformLoss(model),
        tmp_path,
        evaluator=GeometryEvaluator(FIRST, SECOND, name="sts"),
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_sts_align_uniform",
        greater_is_better=False,
    )
    trained.train()
    values = logged(trained, "eval_sts_align_uniform")
    assert len(values) == 2 and trained.state.best_metric == min(values)
    assert (tmp_path / "eval" / "geometry_evaluation_sts_results.csv").exists()


@pytest.mark.parametrize(
    ("scores", "threshold", "message"),
    [
        (SCORES[:3], 4, "differ in length"),
        (SCORES, 0.8, "threshold=4"),
        ([0.1, 0.2, 0.3, 0.0, 0.5], 0.8, "lower the threshold"),
    ],
)
def test_scores_that_give_no_pairs_are_refused(scores, threshold, message):
    with pytest.raises(ValueError, match=message):
        GeometryEvaluator(FIRST, SECOND, scores, threshold)
