"""The lowest uniformity of so many points, against configurations that are known to attain it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from hsplugin import uniform_loss, uniformity_optimum
from tests.examples.scripts import load

script = load("batch_queue_dimension")


def simplex(dim: int) -> torch.Tensor:
    """dim + 1 points in dim + 1 coordinates, whose mean is zero."""
    eye = torch.eye(dim + 1, dtype=torch.float64)
    centred = eye - eye.mean(0)
    return centred / centred.norm(dim=1, keepdim=True)


def cross_polytope(dim: int) -> torch.Tensor:
    eye = torch.eye(dim, dtype=torch.float64)
    return torch.cat([eye, -eye])


def polygon(points: int) -> torch.Tensor:
    angle = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("t", [0.5, 2.0])
@pytest.mark.parametrize(
    ("points", "dim"),
    [(simplex(8), 8), (simplex(63), 63), (cross_polytope(8), 8), (polygon(7), 2)],
)
def test_it_is_attained_by_points_that_are_universally_optimal(points, dim, t):
    bound = script.lowest_uniformity(len(points), dim, t)
    assert bound == pytest.approx(uniform_loss(points, t).item(), abs=1e-4)


def test_no_points_found_by_descent_are_below_it():
    torch.manual_seed(0)
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.03)
    for _ in range(400):
        loss = uniform_loss(torch.nn.functional.normalize(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bound = script.lowest_uniformity(40, 6)
    assert bound <= loss.item() < bound + 0.02 < uniformity_optimum(6)


def test_of_many_points_it_is_the_optimum():
    assert script.lowest_uniformity(10**7, 16) == pytest.approx(uniformity_optimum(16), abs=1e-4)


def test_a_sweep_is_drawn_and_tabled(tmp_path: Path, capsys):
    rows = [
        {
            **{"method": method, "seed": seed, "batch_size": batch, "dim": dim, "data": "digits"},
            **{"uniformity": -3.0 - seed / 10, "alignment": 0.5, "linear": 90.0, "knn": 80.0},
            "options": json.dumps({"queue": queue} if queue else {}),
            "defaults": json.dumps({"hidden": 512}),
        }
        for seed in (0, 1)
        for method, batch, dim, queue in (
            *(("simclr", batch, 64, None) for batch in (16, 128)),
            *(("simclr", 128, dim, None) for dim in (8, 32)),
            *(("moco", 128, 64, queue) for queue in (128, 512)),
        )
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "sweep.csv", index=False)
    script.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("| batch size ") == 2 and said.count("| size of the queue") == 2
    assert said.count("| dimension ") == 3 and "-3.050 ± 0.071" in said
    assert (tmp_path / "sizes.png").stat().st_size > 10_000
