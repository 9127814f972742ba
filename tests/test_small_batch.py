"""The way of small batches, against the float64 definition and where it must step back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import hsplugin
from hsplugin.small_batch import LARGEST_T, MOST_ROWS, align_uniform_terms
from tests import reference


def views(n: int, d: int, spread: float, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x[:1] + spread * (x - x[:1])
    return [x, x + 0.3 * spread * torch.randn(n, d, generator=generator, dtype=torch.float64)]


def exact_terms(z_a, z_b, t):
    a, b = normalize(z_a, dim=1), normalize(z_b, dim=1)
    uniform = (reference.log_mean_potential(a, t) + reference.log_mean_potential(b, t)) / 2
    return reference.align(a, b, 2.0), uniform


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 150),
    d=st.sampled_from([2, 7, 64, 300]),
    t=st.sampled_from([0.01, 0.5, 2.0, 7.0, LARGEST_T]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([1.0, 1e-3, 0.0]),
    upstream=st.tuples(*[st.sampled_from([0.0, 1.0, -3.0, 1e4])] * 3),
    seed=st.integers(0, 2**31),
)
def test_every_term_and_its_gradient_agree_with_the_definition(
    n, d, t, dtype, spread, upstream, seed
):
    leaves = [z.to(dtype).requires_grad_() for z in views(n, d, spread, seed)]
    terms = align_uniform_terms(*leaves, 0.7, 1.3, t)
    assert terms is not None
    sum(u * term for u, term in zip(upstream, terms, strict=True)).backward()

    exact = [z.detach().double().requires_grad_() for z in leaves]
    align, uniform = exact_terms(*exact, t)
    expected = 0.7 * align + 1.3 * uniform, align, uniform
    sum(u * term for u, term in zip(upstream, expected, strict=True)).backward()

    eps = torch.finfo(terms[0].dtype).eps
    for term, exact_term in zip(terms, expected, strict=True):
        assert term.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert term.item() == pytest.approx(exact_term.item(), abs=eps * (40 * t + 16))
    for leaf, exact_leaf in zip(leaves, exact, strict=True):
        scale = (4 * t + 4) / exact_leaf.norm(dim=1).min().item() * sum(map(abs, upstream))
        allowed = eps * (80 * t + 80) * scale
        allowed = allowed + torch.finfo(dtype).eps * exact_leaf.grad.abs().max().item()
        assert leaf.grad.dtype == dtype
        # The smallest step of float16 is what its gradients are rounded to near zero.
        allowed = allowed + torch.finfo(dtype).smallest_normal
        assert (leaf.grad.double() - exact_leaf.grad).abs().max().item() <= allowed


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradients_equal_finite_differences(index):
    x, y = views(6, 4, 1.0, 0)
    assert torch.autograd.gradcheck(
        lambda a, b: align_uniform_terms(a, b, 0.7, 1.3, 2.0)[index],
        (x.requires_grad_(), y.requires_grad_()),
    )


def test_it_is_what_the_loss_takes_and_the_same_as_the_way_of_large_batches():
    z_a, z_b = (z.float().requires_grad_() for z in views(64, 32, 1.0, 0))
    taken = hsplugin.AlignUniformLoss()(z_a, z_b)
    assert "_Terms" in type(taken.grad_fn).__name__
    general = hsplugin.AlignUniformLoss(backend="tiled")(z_a, z_b)
    assert "_Terms" not in type(general.grad_fn).__name__
    torch.testing.assert_close(taken, general)
    for one, other in zip(
        torch.autograd.grad(taken, (z_a, z_b)),
        torch.autograd.grad(general, (z_a, z_b)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_steps_back_from_what_it_cannot_do_and_only_there():
    x, y = (z.float() for z in views(8, 4, 1.0, 0))
    assert align_uniform_terms(x, y, 1.0, 1.0, 2.0) is not None
    assert align_uniform_terms(x, y, 1.0, 1.0, 2 * LARGEST_T) is None
    assert align_uniform_terms(x[:1], y[:1], 1.0, 1.0, 2.0) is None
    assert align_uniform_terms(*[torch.ones(MOST_ROWS + 1, 2)] * 2, 1.0, 1.0, 2.0) is None
    for spoilt_value in (0.0, 1e-9, math.nan):
        spoilt = x.clone()
        spoilt[3] = spoilt_value
        assert align_uniform_terms(spoilt, y, 1.0, 1.0, 2.0) is None
    # Half of all pairs are poles apart, at the largest t: e^-80 still counts.
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    uniform = align_uniform_terms(poles, poles, 1.0, 1.0, LARGEST_T)[2]
    assert uniform.item() == pytest.approx(-4 * LARGEST_T)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_the_loss_and_the_gradient_nan(value):
    x, y = (z.float() for z in views(8, 4, 1.0, 0))
    x[3, 1] = value
    x.requires_grad_()
    terms = hsplugin.AlignUniformLoss().components(x, y)
    assert all(term.isnan() for term in terms)
    terms.loss.backward()
    assert x.grad.isnan().any()


def test_one_view_may_be_a_target_and_the_graph_may_be_kept():
    x, y = (z.float() for z in views(8, 4, 1.0, 0))
    x.requires_grad_()
    loss = hsplugin.AlignUniformLoss()(x, y)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, x)
    assert torch.equal(once, twice)
    with torch.no_grad():
        assert torch.equal(hsplugin.AlignUniformLoss()(x, y), loss)


def test_second_derivatives_are_refused_and_autocast_changes_nothing():
    x, y = (z.float().requires_grad_() for z in views(8, 4, 1.0, 0))
    loss = hsplugin.AlignUniformLoss()(x, y)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        gradient.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        same = hsplugin.AlignUniformLoss()(x, y)
    assert torch.equal(same, loss) and same.dtype == torch.float32
