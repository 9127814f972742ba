"""Points that descend on the loss reach the optimum that theory allows, and no lower one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import hyp0f1

from tests.examples import scripts

example = scripts.load("uniform_points_on_sphere")


def optimum(dim: int, t: float) -> float:
    return -2 * t + math.log(hyp0f1(dim / 2, t * t))


def energy(x: torch.Tensor, t: float) -> float:
    """The V-statistic of points in float64, from its definition."""
    x = x.numpy()
    return math.log(np.exp(-t * ((x[:, None] - x[None]) ** 2).sum(-1)).mean())


@pytest.mark.parametrize(("dim", "t"), [(2, 2.0), (3, 2.0), (3, 1.0), (4, 2.0)])
def test_descent_ends_at_the_attainable_optimum(dim: int, t: float) -> None:
    start = example.points_in_a_cap(256, dim)
    assert energy(start, t) > optimum(dim, t) + 0.2
    end = example.spread(start, t=t, steps=300).end
    assert torch.allclose(end.norm(dim=1), torch.ones(256, dtype=end.dtype))
    assert 0 <= energy(end, t) - optimum(dim, t) < 2e-4


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
def test_the_loss_ends_below_the_optimum_and_above_what_n_points_can_reach(dim: int) -> None:
    descent = example.spread(example.points_in_a_cap(128, dim), steps=100)
    least = example.least_without_self(128, dim)
    assert least < descent.without_self[-1] < optimum(dim, 2.0)
    assert descent.with_self[-1] == pytest.approx(
        math.log((127 * math.exp(descent.without_self[-1]) + 1) / 128)
    )


def test_the_points_end_spread_as_the_uniform_distribution_is() -> None:
    end = example.spread(example.points_in_a_cap(512, 3), steps=300).end.numpy()
    # Archimedes: on the sphere in three dimensions each coordinate is uniform on [-1, 1].
    for axis in range(3):
        assert stats.kstest(end[:, axis], stats.uniform(-1, 2).cdf).statistic < 0.05
    assert np.abs(end.mean(0)).max() < 1e-3
    assert np.abs(end.T @ end / len(end) - np.eye(3) / 3).max() < 1e-3


def test_the_script_prints_a_row_a_dimension_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "points.png"
    printed = scripts.run(
        "uniform_points_on_sphere",
        "--dims",
        2,
        3,
        8,
        "--points",
        64,
        "--steps",
        50,
        "--out",
        picture,
    )
    rows = [line.split() for line in printed.splitlines()[1:4]]
    assert [int(row[0]) for row in rows] == [2, 3, 8]
    assert float(rows[0][2]) == pytest.approx(optimum(2, 2.0), abs=1e-5)
    assert picture.stat().st_size > 10_000
