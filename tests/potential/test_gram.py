"""Small sets by their Gram matrix, against the float64 definition, and where engines take over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsplugin.potential import gram, log_mean_potential
from tests import reference


def features(n: int, d: int, seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "raw":
        return x + 10
    if kind == "shifted":
        return 0.3 * x + 1
    if kind == "twins":  # one pair weighs one, whatever the others weigh
        x[1 % n] = x[0]
    x = torch.nn.functional.normalize(x, dim=1)
    if kind == "nearly unit":  # as far as float32 can tell
        return x * (1 + 1e-8 * torch.arange(n).double()[:, None])
    return x[:1] + 1e-4 * x if kind == "collapsed" else x


@settings(max_examples=150)
@given(
    n=st.integers(2, 130) | st.integers(gram.MOST_ROWS - 1, gram.MOST_ROWS + 1),
    d=st.sampled_from([1, 2, 7, 64, 200]),
    t=st.sampled_from([0.01, 0.5, 2.0, 19.0, 25.0, 400.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    kind=st.sampled_from(["sphere", "nearly unit", "twins", "collapsed", "shifted", "raw"]),
    seed=st.integers(0, 2**31),
)
def test_small_batches_agree_with_the_definition(n, d, t, dtype, kind, seed):
    n = min(n, 20_000 // d)  # the definition holds n * n * d numbers
    x = features(n, d, seed, kind).to(dtype)
    expected, expected_gradient = reference.value_and_gradient(
        lambda z: reference.log_mean_potential(z, t), x.double()
    )
    value, gradient = reference.value_and_gradient(lambda z: log_mean_potential(z, t), x)
    given_x = x.clone()
    alone = log_mean_potential(x, t)
    assert torch.equal(x, given_x)
    radius = (x.double() - x.double().mean(0)).norm(dim=1).max().item()
    size = x.double().norm(dim=1).max().item()
    roundoff = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    error = roundoff * ((32 + d**0.5) * t * (radius**2 + radius) + abs(expected.item()) + 16)
    error += 2.0**-48  # of the definition itself, whose sum is rounded too
    assert abs(value.item() - expected.item()) <= error
    assert abs(alone.item() - expected.item()) <= error
    kept = roundoff if dtype == torch.float64 else torch.finfo(dtype).eps / 2
    gradient_error = (gradient.double() - expected_gradient).abs().max().item()
    largest = expected_gradient.abs().max().item()
    assert gradient_error <= 4 * t * (radius + size) * (4 * error + 64 * roundoff) + kept * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_back_where_it_would_be_wrong_and_only_there(dtype):
    x = features(40, 8, 0, "sphere").to(dtype)
    taken = gram.value_and_gradient(x, 2.0, need_gradient=True)
    assert taken is not None and taken[0].dtype == taken[1].dtype == dtype
    assert gram.value_and_gradient(x, 2.0, need_gradient=False)[1] is None
    assert gram.value_and_gradient(x, 100.0, need_gradient=True) is None
    assert gram.value_and_gradient(x + 100, 1e-4, need_gradient=True) is None
    assert gram.value_and_gradient(torch.cat([x] * 17), 2.0, need_gradient=True) is None
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoilt = x.clone()
        spoilt[3, 1] = bad
        assert gram.value_and_gradient(spoilt, 2.0, need_gradient=True) is None


def test_a_gradient_whose_factor_overflows_is_computed_elsewhere():
    # Lengths differ, so that nothing is taken out of a weight of e^-79.
    t = 1e6
    x = torch.tensor([[1.0], [-1.001]]) * (79 / (4 * t)) ** 0.5
    assert gram.value_and_gradient(x, t, need_gradient=True) is None
    assert gram.value_and_gradient(x, t, need_gradient=False) is None
    _, gradient = reference.value_and_gradient(lambda z: log_mean_potential(z, t), x)
    expected = -2 * t * (x[0, 0] - x[1, 0])
    torch.testing.assert_close(gradient[:, 0], torch.stack([expected, -expected]))


def test_one_row_is_refused_or_its_own_pair():
    row = features(1, 4, 0, "sphere").bfloat16()
    with pytest.raises(ValueError, match=r"x has 1 row\(s\) over all ranks"):
        log_mean_potential(row, gather_distributed=True)
    value, gradient = reference.value_and_gradient(
        lambda z: log_mean_potential(z, include_self=True), row
    )
    assert value.item() == 0 and gradient.dtype == torch.bfloat16
    assert gradient.count_nonzero() == 0


def test_runs_in_deterministic_mode():
    x = features(40, 8, 0, "sphere").float()
    torch.use_deterministic_algorithms(True)
    try:
        seen = [
            reference.value_and_gradient(lambda z, n=n: log_mean_potential(z[:n]), x.repeat(20, 1))
            for n in (40, 40, 800, 800)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in (seen[:2], seen[2:]):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
