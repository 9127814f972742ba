"""Geometry of training batches, logged beside the loss of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from tests import reference
from tests.sentence_transformers.columns import COLUMNS, logged, pairs, trainer

losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

from hsplugin_sentence_transformers import GeometryCallback, GeometryEvaluator  # noqa: E402


def watched(model: Any, loss: Any, folder: Path, columns: Any = None, **arguments: Any) -> Any:
    training = trainer(model, loss, folder, columns, **arguments)
    training.add_callback(GeometryCallback(training))
    training.train()
    return training


def hooks(*modules: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@pytest.mark.parametrize("columns", [pairs(), COLUMNS], ids=["pairs", "triplets"])
def test_it_logs_the_definitions_where_the_trainer_logs(model, tmp_path: Path, columns):
    # The model stays as it is, and each batch is the whole data set.
    loss = losses.MultipleNegativesRankingLoss(model)
    training = watched(model, loss, tmp_path, columns, learning_rate=0.0, logging_steps=5)
    x, y = (
        normalize(model.encode(columns[name], convert_to_tensor=True).double())
        for name in ("anchor", "positive")
    )
    alignment, uniformity = reference.align(x, y, 2), reference.log_mean_potential(x, 2.0)
    assert logged(training, "geometry/alignment") == pytest.approx([alignment.item()] * 2, rel=1e-5)
    assert logged(training, "geometry/uniformity") == pytest.approx(
        [uniformity.item()] * 2, rel=1e-5
    )
    assert len(logged(training, "loss")) == 2
    assert hooks(model, loss) == 0


def test_training_is_bit_identical_with_and_without(model, tmp_path: Path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    weights, losses_logged = [], []
    for train in (trainer, watched):
        model.load_state_dict(start)
        training = train(
            model,
            losses.MultipleNegativesRankingLoss(model),
            tmp_path,
            evaluator=GeometryEvaluator(COLUMNS["anchor"], COLUMNS["positive"]),
            eval_strategy="steps",
            eval_steps=2,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=3,
            logging_strategy="epoch",
        )
        if train is trainer:
            training.train()
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        losses_logged.append(logged(training, "loss"))
    assert losses_logged[0] == losses_logged[1]
    assert len(losses_logged[1]) == len(logged(training, "geometry/uniformity")) > 1
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in start)
    assert not all(torch.equal(weights[0][name], start[name]) for name in start)


def test_one_column_has_uniformity_alone(model, tmp_path: Path):
    columns = {"sentence": COLUMNS["anchor"], "label": [0, 0, 1, 1, 1]}
    training = watched(model, losses.BatchAllTripletLoss(model), tmp_path, columns, max_steps=1)
    assert len(logged(training, "geometry/uniformity")) == 1
    assert logged(training, "geometry/alignment") == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
        lambda model: losses.MatryoshkaLoss(
            model, losses.MultipleNegativesRankingLoss(model), [16, 8]
        ),
    ],
    ids=["cached", "matryoshka"],
)
def test_what_is_embedded_in_parts_is_refused_and_trains_on(model, tmp_path: Path, wrap):
    with pytest.warns(UserWarning, match="cannot be told apart"):
        training = watched(model, wrap(model), tmp_path, max_steps=2)
    assert len(logged(training, "loss")) == 2
    assert logged(training, "geometry/uniformity") == []
