"""The loss with sentence-transformers' own model, trainer and wrappers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from tests import reference
from tests.sentence_transformers.columns import COLUMNS, logged, pairs, trainer

losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

from hsplugin_sentence_transformers import AlignUniformLoss  # noqa: E402


def features(model: Any, columns: dict[str, list[str]]) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess(texts) for texts in columns.values()]


def definition(
    embeddings: list[torch.Tensor], weights: tuple[float, float], alpha: float, t: float
) -> tuple[float, float]:
    """Both weighted terms in float64."""
    anchors, positives, *negatives = (normalize(e.double(), dim=1) for e in embeddings)
    uniform = [
        reference.log_mean_potential(rows, t)
        for rows in (anchors, torch.cat([positives, *negatives]))
    ]
    align = weights[0] * reference.align(anchors, positives, alpha)
    return align.item(), (weights[1] * sum(uniform) / 2).item()


@pytest.mark.parametrize("columns", [pairs(), COLUMNS], ids=["pairs", "triplets"])
@pytest.mark.parametrize("settings", [((1.0, 1.0), 2.0, 2.0), ((3.0, 0.5), 1.0, 5.0)])
def test_the_terms_are_those_of_the_definition(model, columns, settings):
    weights, alpha, t = settings
    loss = AlignUniformLoss(model, *weights, alpha, t)
    terms = loss(features(model, columns), None)
    embeddings = [model.encode(texts, convert_to_tensor=True) for texts in columns.values()]
    expected = definition(embeddings, weights, alpha, t)
    assert (terms["align"].item(), terms["uniform"].item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [2.0, 5.0])
def test_a_temperature_takes_the_place_of_the_scale(model, scale: float):
    generator = torch.Generator().manual_seed(0)
    anchors = normalize(torch.randn(2000, 16, generator=generator), dim=1)
    positives = normalize(anchors + 0.1 * torch.randn(2000, 16, generator=generator), dim=1)
    ranking = losses.MultipleNegativesRankingLoss(model, scale=scale)
    ours = AlignUniformLoss.from_temperature(model, 1 / scale, log_terms=False)
    replaced, replacing = (
        loss.compute_loss_from_embeddings([anchors, positives], None) for loss in (ranking, ours)
    )
    assert replacing.item() == pytest.approx(replaced.item() - math.log(2000), abs=0.02 * scale)
    with pytest.raises(TypeError, match="'t'"):
        AlignUniformLoss.from_temperature(model, 0.1, t=2.0)


def test_a_negative_is_pushed_from_its_anchors_positive(model):
    loss = AlignUniformLoss(model, t=4.0)
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(3, 6, 8, generator=generator), dim=2)
    anchors, positives, negatives = rows
    near = normalize(positives + 0.1 * negatives, dim=1)
    close, far = (
        loss.compute_loss_from_embeddings([anchors, positives, rows])["uniform"]
        for rows in (near, negatives)
    )
    assert close > far


def test_the_trainer_logs_both_terms_of_a_loss_that_falls(model, tmp_path: Path):
    first = [model.encode(texts, convert_to_tensor=True) for texts in pairs().values()]
    trained = trainer(model, AlignUniformLoss(model), tmp_path)
    trained.train()
    align, uniform, total = (logged(trained, name) for name in ("align", "uniform", "loss"))
    assert len(align) == len(uniform) == len(total) == 10
    # The trainer rounds to four digits.
    expected = definition(first, (1.0, 1.0), 2.0, 2.0)
    assert (align[0], uniform[0]) == pytest.approx(expected, abs=1e-4)
    for a, u, both in zip(align, uniform, total, strict=True):
        assert both == pytest.approx(a + u, abs=2e-4)
    assert total[-1] < total[0] - 1
    model.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "2005.10242" in card and re.search(r'"align_weight": 1.0', card)


def test_matryoshka_gets_the_sum_at_each_width(model):
    widths = [16, 8]
    inner = AlignUniformLoss(model, log_terms=False)
    value = losses.MatryoshkaLoss(model, inner, widths)(features(model, pairs()), None)
    embeddings = [model.encode(texts, convert_to_tensor=True) for texts in pairs().values()]
    parts = [definition([e[:, :d] for e in embeddings], (1, 1), 2, 2) for d in widths]
    assert value.item() == pytest.approx(sum(map(sum, parts)), rel=1e-5)


def test_labels_are_refused_as_they_would_be_ignored(model):
    loss = AlignUniformLoss(model)
    with pytest.raises(ValueError, match="no use for labels"):
        loss(features(model, pairs()), torch.tensor([0.1, 0.9, 0.5, 0.2, 1.0]))
    with pytest.raises(ValueError, match="got 1 column"):
        loss(features(model, {"anchor": COLUMNS["anchor"]}), None)


@pytest.mark.parametrize("name", ["align_weight", "uniform_weight", "alpha", "t"])
def test_a_bad_setting_is_named(model, name: str):
    with pytest.raises(ValueError, match=name):
        AlignUniformLoss(model, **{name: -1.0})
    with pytest.raises(TypeError, match=name):
        AlignUniformLoss(model, **{name: "1"})
