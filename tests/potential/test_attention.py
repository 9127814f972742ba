"""The way by fused attention, against the float64 definition and where it must step back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsplugin.potential import attention, log_mean_potential, reference
from tests import reference as definition

pytestmark = pytest.mark.skipif(not attention._available(), reason="this torch lacks the kernel")


def unit_rows(n: int, d: int, seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "twins":
        x = x[torch.arange(n) % (n - n // 2)]
    if kind == "collapsed":
        x = x[:1] + 1e-4 * x
    if kind == "one apart":  # all others are one point, which it has to be told from itself
        x = x[:1] + 1e-5 * x
        x[0] = -x[0]
    return torch.nn.functional.normalize(x, dim=1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    m=st.integers(130, 700),
    d=st.sampled_from([1, 2, 7, 64, 128, 300]),
    t=st.sampled_from([0.01, 0.5, 2.0, 2.4]),
    kind=st.sampled_from(["sphere", "twins", "collapsed", "one apart"]),
    pairs=st.sampled_from(["self", "some of the columns", "others"]),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_the_definition(n, m, d, t, kind, pairs, seed):
    columns = unit_rows(m, d, seed, kind)
    own_offset = None if pairs == "others" else 0 if pairs == "self" else (m - min(n, m)) // 2
    if pairs == "self":
        rows = columns
    elif pairs == "others":
        rows = unit_rows(n, d, seed + 1, "sphere")
    else:
        rows = columns[own_offset : own_offset + n].clone()
    options = {"own_offset": own_offset, "need_gradient": True}
    found = attention.accumulate(rows, columns, t, **options)
    if len(rows) * m < attention.LEAST_PAIRS:
        assert found is None
        return
    if found is None:  # which it may, where rows have little beside themselves
        assert own_offset is not None
        return
    expected = reference.accumulate(rows.double(), columns.double(), t, **options)
    log_error = abs(found[0].item() - expected[0].item())
    allowed = 2.0**-24 * ((32 + d**0.5) * 2 * t + math.log(m) + 16)
    assert log_error <= allowed
    # Attention adds up a row's pair with itself too, and with it that pair's rounding.
    own = 0 if own_offset is None else len(rows) / expected[0].exp().item()
    error = (found[1].double() - expected[1]).abs().sum(dim=1).max().item()
    largest = (expected[1].abs().sum(dim=1)).max().item()
    assert error <= 8 * allowed * d**0.5 * (largest + (1 + own) / len(rows))


def test_is_what_unit_rows_take_and_nothing_else():
    x = unit_rows(200, 16, 0, "sphere")
    options = {"own_offset": 0, "need_gradient": True}
    assert attention.accumulate(x, x, 2.0, **options) is not None
    assert attention.accumulate(x, x, 2.0, own_offset=0, need_gradient=False) is None
    assert attention.accumulate(x, x, 20.0, **options) is None
    assert attention.accumulate(x.double(), x.double(), 2.0, **options) is None
    for spoil in (1.00001, math.nan, math.inf):
        spoilt = x.clone()
        spoilt[7] *= spoil
        assert attention.accumulate(spoilt, spoilt, 2.0, **options) is None
        assert attention.accumulate(x, spoilt, 2.0, own_offset=None, need_gradient=True) is None


@pytest.mark.parametrize("options", [{}, {"queue": True}, {"queue": True, "intra_batch": False}])
def test_the_operator_takes_it_and_agrees_with_the_definition(options):
    x = unit_rows(200, 16, 0, "sphere")
    if "queue" in options:
        options = {**options, "queue": unit_rows(300, 16, 1, "sphere")}
    value, gradient = definition.value_and_gradient(lambda z: log_mean_potential(z, **options), x)
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected, expected_gradient = definition.value_and_gradient(
        lambda z: definition.log_mean_potential(z, 2.0, **exact), x.double()
    )
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-7)
