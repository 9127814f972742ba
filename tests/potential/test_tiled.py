"""Tiles of every shape against the float64 definition."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hsplugin.potential import log_mean_potential, tiled
from tests import reference


def sphere(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [2.0, 300.0])
@pytest.mark.parametrize("n", [127, 128, 129, 256, 300, 517])
def test_tiles_agree_with_the_definition(monkeypatch, dtype, t, n):
    # Tiles of 128 rows, so that few rows make many of them.
    monkeypatch.setattr(tiled, "CPU_TILE_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(tiled, "LEAST_SIDE", 128)
    x, queue = sphere(n, 19), sphere(391, 19, seed=1)
    tolerance = {torch.float32: 8e-7, torch.float64: 1e-13}[dtype] * (1 + t)
    for options in ({}, {"queue": queue}, {"queue": queue, "intra_batch": False}):
        expected, expected_gradient = reference.value_and_gradient(
            lambda z, options=options: reference.log_mean_potential(z, t, **options), x
        )
        given = {name: v.to(dtype) if name == "queue" else v for name, v in options.items()}
        value, gradient = reference.value_and_gradient(
            lambda z, given=given: log_mean_potential(z, t, backend="tiled", **given), x.to(dtype)
        )
        assert abs(value.item() - expected.item()) <= tolerance
        scale = expected_gradient.abs().max().item()
        assert (gradient.double() - expected_gradient).abs().max().item() <= 4 * tolerance * scale


@pytest.mark.parametrize("n", [6, 40, 200, 600])
def test_rounding_of_huge_exponents_neither_overflows_nor_underflows(n):
    # Exponents of 1e10, whose rounding is larger than any that exp() can take.
    for seed in range(4):
        x = (6e4 * sphere(n, 30, seed)).half()
        expected = reference.log_mean_potential(x, 2.0).item()
        value, gradient = reference.value_and_gradient(
            lambda z: log_mean_potential(z, 2.0, backend="tiled"), x.float()
        )
        assert value.item() == pytest.approx(expected, rel=1e-4)
        assert gradient.isfinite().all()


def test_memory_beyond_the_features_is_linear_in_their_number():
    program = """
import resource, torch, hsplugin
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.set_num_threads(1)
hsplugin.uniform_loss(torch.randn(1500, 32, requires_grad=True)).backward()
x = torch.nn.functional.normalize(torch.randn(12000, 32), dim=1).requires_grad_()
before = peak()
hsplugin.uniform_loss(x).backward()
print(peak() - before)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    # The features take 1.5 MiB, all pairs of them 549 MiB.
    assert float(output.stdout) < 40
