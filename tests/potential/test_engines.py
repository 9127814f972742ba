"""Every engine, in every mode, against the float64 definition.

Triton's takes part where it can run: on a device, or with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hsplugin.potential import log_mean_potential
from tests import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
ENGINES = ["reference", "tiled"]
if importlib.util.find_spec("triton") and (DEVICE == "cuda" or INTERPRETED):
    ENGINES.append("triton")
MODES = [
    {},
    {"include_self": True},
    {"queue": True},
    {"queue": True, "intra_batch": False},
    {"queue": True, "include_self": True},
]
UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-24,
    torch.float16: 2.0**-24,
}


def features(n: int, d: int, seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "sphere":
        return torch.nn.functional.normalize(x, dim=1)
    if kind == "duplicates":
        return torch.nn.functional.normalize(x[torch.arange(n) // 2], dim=1)
    if kind == "collapsed":
        return torch.nn.functional.normalize(x[:1] + 1e-3 * x, dim=1)
    if kind == "poles":
        signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
        return signs[:, None] * torch.nn.functional.normalize(x[:1], dim=1).expand(n, d)
    return 3 * x + 5


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values behind other strides."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "strided":
        return torch.stack([x, x], dim=1)[:, 0]
    return x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode) or "self")
@settings(max_examples=60)
@given(
    n=st.integers(2, 300),
    d=st.sampled_from([3, 16, 128, 257, 2048]),
    t=st.sampled_from([0.1, 2.0, 5.0, 37.0, 1000.0]),
    dtype=st.sampled_from(list(UNIT_ROUNDOFF)),
    kind=st.sampled_from(["sphere", "duplicates", "collapsed", "poles", "raw"]),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    seed=st.integers(0, 2**31),
)
@example(2, 3, 1000.0, torch.float32, "poles", "contiguous", 0)
@example(2, 2048, 0.1, torch.float64, "raw", "contiguous", 2)
def test_agrees_with_the_definition(engine, mode, n, d, t, dtype, kind, layout, seed):
    assume(engine != "triton" or dtype != torch.float64)
    n = min(n, 40_000 // d + 2)  # the definition holds n * n * d numbers
    x = features(n, d, seed, kind).to(dtype)
    options = dict(mode)
    if mode.get("queue"):
        options["queue"] = features(17, d, seed + 1, kind).to(dtype)
    expected, expected_gradient = reference.value_and_gradient(
        lambda z: reference.log_mean_potential(z, t, **options), x.double()
    )
    device = DEVICE if engine == "triton" else "cpu"
    if "queue" in options:
        options["queue"] = options["queue"].to(device)
    leaf = laid_out(x.to(device), layout).detach().requires_grad_()
    value = log_mean_potential(leaf, t, backend=engine, **options)
    value.backward()

    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert leaf.grad.dtype == dtype
    # An exponent t |x_i - x_j|^2 comes out of products of centred features; its rounding is that
    # of t R^2, R their radius, and the logarithm of a mean is no worse than its worst exponent.
    # Half-precision features are not centred on a device.
    everything = torch.cat([x, options["queue"].cpu()] if "queue" in options else [x]).double()
    if engine != "triton" or dtype == torch.float32:
        everything -= everything.mean(0)
    radius = everything.norm(dim=1).max().item()
    # Of a sum of d terms, and points are twice the radius apart: the running sum of the squares of
    # their differences is up to four times R^2.
    rounding = 32 + 2 * d**0.5
    if engine == "triton" and dtype.itemsize == 2:  # tensor cores round each addition towards zero
        rounding += d / 8
    error = UNIT_ROUNDOFF[dtype] * (rounding * t * (radius**2 + radius) + abs(expected.item()) + 16)
    error += 2.0**-48  # of the definition itself, whose sum is rounded too
    assert abs(value.item() - expected.item()) <= error
    rounded = UNIT_ROUNDOFF[dtype] if dtype == torch.float64 else torch.finfo(dtype).eps / 2
    scale = 4 * t * (radius + 1)
    gradient_error = (leaf.grad.cpu().double() - expected_gradient).abs().max().item()
    assert gradient_error <= scale * (4 * error + 4 * rounded)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("n", "d"), [(2, 19), (30, 130), (256, 128), (700, 40)])
@pytest.mark.parametrize("t", [1e4, 1e6])
def test_rows_that_all_but_touch_pull_at_each_other_alike(engine, n, d, t):
    """Only their pair weighs, however far its exponent is rounded: the gradient is exact."""
    for seed in range(5):
        lengths = torch.linspace(0.5, 1, n).roll(seed).unsqueeze(1)
        x = lengths * features(n, d, seed, "sphere").float()
        x[-1] = x[0] + 1e-2 * features(1, d, seed + 9, "sphere").float()
        leaf = x.to(DEVICE if engine == "triton" else "cpu").requires_grad_()
        log_mean_potential(leaf, t, backend=engine).backward()
        first, last = leaf.grad[0].cpu(), leaf.grad[-1].cpu()
        expected = -2 * t * (x[0].double() - x[-1].double())
        assert (first.double() - expected).norm() <= 1e-3 * expected.norm()
        assert (first + last).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("engine", ["reference", "tiled", "auto"])
@pytest.mark.parametrize(("size", "t"), [(3e19, 1e-38), (3e19, 1e-6), (1e-19, 1e37), (1.0, 1e37)])
def test_features_and_t_at_the_ends_of_their_range(engine, size, t):
    x = (size * features(20, 8, 0, "sphere")).float()
    expected, expected_gradient = reference.value_and_gradient(
        lambda z: reference.log_mean_potential(z, t), x.double()
    )
    value, gradient = reference.value_and_gradient(
        lambda z: log_mean_potential(z, t, backend=engine), x
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient.double() - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
