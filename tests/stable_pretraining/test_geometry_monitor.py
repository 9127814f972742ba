"""The monitor of a key, in stable-pretraining's own training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import reference
from tests.stable_pretraining import training

spt = pytest.importorskip(
    "stable_pretraining", reason="stable-pretraining is tested in its own environment"
)

from hsplugin_stable_pretraining import GeometryMonitor, align_uniform  # noqa: E402

from hsplugin import AlignUniformLoss  # noqa: E402
from hsplugin.metrics import Tolerance  # noqa: E402


def simclr() -> torch.nn.Module:
    """Their own method, whose forward gives no projection."""
    from stable_pretraining.forward import simclr as forward

    return spt.Module(
        forward=forward,
        simclr_loss=spt.losses.NTXEntLoss(),
        **training.parts(),
    )


def test_views_under_a_key_are_measured_in_training_and_validation(tmp_path: Path):
    watched = simclr()
    rankme = spt.callbacks.RankMe("rankme", "embedding", queue_length=24, target_shape=8)
    trainer = training.fit(watched, tmp_path, GeometryMonitor(), rankme, lr=0.0)
    x, y = training.embeddings(watched)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["geometry/alignment"] == pytest.approx(reference.align(x, y, 2).item(), rel=1e-5)
    uniformity = pytest.approx(reference.log_mean_potential(x, 2.0).item(), rel=1e-5)
    assert logged["geometry/uniformity"] == uniformity
    # A single view is validated.
    assert logged["geometry/val_uniformity"] == uniformity
    assert "geometry/val_alignment" not in logged
    assert "rankme" in logged


def test_several_keys_and_labels(tmp_path: Path):
    watched = spt.Module(
        forward=align_uniform, align_uniform_loss=AlignUniformLoss(), **training.parts()
    )
    tolerance = {"tolerance": Tolerance(num_classes=3, conditional=True)}
    monitors = [
        GeometryMonitor("backbone", metrics=tolerance),
        GeometryMonitor("head", "projection", metrics=["alignment"]),
    ]
    trainer = training.fit(watched, tmp_path, *monitors, lr=0.0)
    x, _ = training.embeddings(watched)
    labels = training.Views("list").labels
    same = labels[:, None] == labels[None]
    pairs = torch.ones(12, 12).triu(1).bool() & same
    expected = (x @ x.T)[pairs].mean().item()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["backbone/tolerance"] == pytest.approx(expected, rel=1e-5)
    x, y = training.embeddings(watched, head=True)
    assert logged["head/alignment"] == pytest.approx(reference.align(x, y, 2).item(), rel=1e-5)


def test_weights_are_bit_identical_with_and_without(tmp_path: Path):
    weights = []
    for callbacks in ([], [GeometryMonitor(every_n_steps=1)]):
        watched = simclr()
        training.fit(watched, tmp_path, *callbacks)
        weights.append(watched.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_key_that_is_not_there_is_named_once_and_training_goes_on(tmp_path: Path):
    watched = simclr()
    start = watched.backbone[2].weight.clone()
    with pytest.warns(UserWarning, match="input='embeddings' is no key.*'embedding'"):
        training.fit(watched, tmp_path, GeometryMonitor(input="embeddings"))
    assert not torch.equal(watched.backbone[2].weight, start)
