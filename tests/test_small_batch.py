"""The way of small batches, against the float64 definition and where it must step back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn.functional import normalize

import hsplugin
from hsplugin.potential.few import LEAST_SPREAD, MOST_ROWS
from hsplugin.small_batch import LARGEST_T, align_uniform_terms
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
    spread=st.sampled_from([1.0, 0.1, 1e-3, 0.0]),
    upstream=st.tuples(*[st.sampled_from([0.0, 1.0, -3.0, 1e4])] * 3),
    seed=st.integers(0, 2**31),
)
def test_every_term_and_its_gradient_agree_with_the_definition(
    n, d, t, dtype, spread, upstream, seed
):
    leaves = [z.to(dtype).requires_grad_() for z in views(n, d, spread, seed)]
    terms = align_uniform_terms(*leaves, 0.7, 1.3, t)
    unit = [normalize(z.detach().double(), dim=1) for z in leaves]
    uniforms = [reference.log_mean_potential(z, t).item() for z in unit]
    if terms is None:  # which near to a collapse it has to be
        assert max(uniforms) > 1.01 * LEAST_SPREAD * 2 * t
        return
    assert max(uniforms) < 0.99 * LEAST_SPREAD * 2 * t
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
        # Some dozens of ulp of what a row's gradient comes to where features are spread.
        scale = (4 * t + 4) / exact_leaf.norm(dim=1).min().item() * sum(map(abs, upstream)) / n
        allowed = eps * (8 * t + 80) * scale
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
    for spoilt_value in (0.0, 1e-9, 1e30, math.nan):
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


def test_one_view_may_be_a_target_that_is_overwritten_before_the_backward_pass():
    x, y = views(8, 4, 1.0, 0)
    x.requires_grad_()
    general = hsplugin.AlignUniformLoss(backend="reference")(x, y)
    (expected,) = torch.autograd.grad(general, x)
    for target in (y.clone(), in_inference_mode(y)):
        loss = hsplugin.AlignUniformLoss()(x, target)
        if not target.is_inference():
            target.zero_()
        (once,) = torch.autograd.grad(loss, x, retain_graph=True)
        (twice,) = torch.autograd.grad(loss, x)
        assert torch.equal(once, twice)
        torch.testing.assert_close(once, expected)
        with torch.no_grad():
            torch.testing.assert_close(hsplugin.AlignUniformLoss()(x, y), loss)


def in_inference_mode(x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return x.clone()


def test_many_upstream_gradients_at_once_and_any_number_of_rows_can_be_traced():
    x, y = views(8, 4, 1.0, 0)
    x.requires_grad_()
    terms = torch.stack(hsplugin.AlignUniformLoss().components(x, y))
    (rows,) = torch.autograd.grad(
        terms, x, torch.eye(3, dtype=x.dtype), is_grads_batched=True, retain_graph=True
    )
    for row, term in zip(rows, terms, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(term, x, retain_graph=True)[0])
    traced = torch.compile(hsplugin.AlignUniformLoss(), fullgraph=True, backend="aot_eager")
    for z in (x, y):
        torch._dynamo.mark_dynamic(z, 0, min=2, max=4096)
    torch.testing.assert_close(traced(x, y), terms[0])


def test_weights_that_are_learned_get_their_gradient():
    x, y = views(8, 4, 1.0, 0)
    loss = hsplugin.AlignUniformLoss()
    loss.align_weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    terms = loss.components(x, y)
    terms.loss.backward()
    torch.testing.assert_close(loss.align_weight.grad, terms.align)


def test_second_derivatives_are_refused_and_autocast_changes_nothing():
    x, y = (z.float().requires_grad_() for z in views(8, 4, 1.0, 0))
    loss = hsplugin.AlignUniformLoss()(x, y)
    factor = torch.ones((), requires_grad=True)
    for by in (x, factor):
        (gradient,) = torch.autograd.grad(loss * factor, x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated twice"):
            torch.autograd.grad(gradient.sum(), by)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="in forward mode"):
        hsplugin.AlignUniformLoss()(forward_ad.make_dual(x, x), y)
    with torch.autocast("cpu", torch.bfloat16):
        same = hsplugin.AlignUniformLoss()(x, y)
    assert torch.equal(same, loss) and same.dtype == torch.float32
