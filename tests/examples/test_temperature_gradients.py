"""Gradients beside NT-Xent's during training, against the loss in float64 from its definition."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from hsplugin import AlignUniformLoss
from tests.examples.scripts import load

script = load("temperature_gradients")


@pytest.mark.slow
def test_the_equal_of_a_temperature_has_nt_xents_gradient_and_the_control_has_not(tmp_path: Path):
    flags = ["--temperatures", "0.5", "--seeds", "0", "--epochs", "2", "--every", "1", "--out"]
    script.main([*flags, str(tmp_path)])
    rows = pd.read_csv(tmp_path / "gradients.csv")
    assert sorted(rows["epoch"].unique()) == [0, 1]
    ours, control = (
        rows[rows["loss"] == loss].set_index(["epoch", "of"])
        for loss in ("from_temperature", "defaults")
    )
    assert (ours["cosine"] > 0.99).all() and ours["ratio"].between(0.9, 1.1).all()
    assert (ours["cosine"] > control["cosine"]).all()
    assert (tmp_path / "gradients.png").stat().st_size > 10_000


def test_gradients_are_those_of_the_encoder_and_leave_it_as_it_was():
    torch.manual_seed(0)
    learner = torch.nn.Module()
    learner.backbone, learner.head = (
        torch.nn.Linear(4, 4).double(),
        torch.nn.BatchNorm1d(4).double(),
    )
    before = {name: x.clone() for name, x in learner.state_dict().items()}
    a, b = torch.randn(2, 16, 4, dtype=torch.float64)
    found = script.of_loss(learner, AlignUniformLoss(), a, b)
    assert all(torch.equal(x, before[name]) for name, x in learner.state_dict().items())
    z_a, z_b = (learner.head(learner.backbone(x)).detach().requires_grad_() for x in (a, b))
    x, y = (z / z.norm(dim=1, keepdim=True) for z in (z_a, z_b))
    uniform = sum(torch.pdist(v).square().mul(-2).exp().mean().log() / 2 for v in (x, y))
    (uniform + (x - y).square().sum(1).mean()).backward()
    expected = torch.cat([z_a.grad.flatten(), z_b.grad.flatten()])
    torch.testing.assert_close(found["projections"], expected)
    assert found["weights"].shape == (4 * 4 + 4 + 4 + 4,)
