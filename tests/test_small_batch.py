"""Losses of any batch size against the float64 definition, by what they return alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import hsplugin
from tests import reference


def views(n: int, d: int, spread: float, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x[:1] + spread * (x - x[:1])
    return [x, x + 0.3 * spread * torch.randn(n, d, generator=generator, dtype=torch.float64)]


def exact_terms(z_a, z_b, alpha, t):
    a, b = normalize(z_a, dim=1), normalize(z_b, dim=1)
    uniform = (reference.log_mean_potential(a, t) + reference.log_mean_potential(b, t)) / 2
    return reference.align(a, b, alpha), uniform


@settings(max_examples=200)
@given(
    n=st.integers(2, 150),
    d=st.sampled_from([2, 7, 64, 300]),
    alpha=st.sampled_from([2.0, 2.0, 1.0, 3.0]),
    t=st.sampled_from([0.01, 0.5, 2.0, 7.0, 20.0, 40.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([1.0, 0.1, 0.03, 1e-3, 0.0]),
    upstream=st.tuples(*[st.sampled_from([0.0, 1.0, -3.0, 1e4])] * 3),
    seed=st.integers(0, 2**31),
)
def test_every_term_and_its_gradient_agree_with_the_definition(
    n, d, alpha, t, dtype, spread, upstream, seed
):
    if alpha < 2:  # the direction between views that all but coincide is lost in their rounding
        spread = 1.0
    if alpha < 2 and dtype.itemsize == 2:
        dtype = torch.float32
    if dtype == torch.float16:  # whose gradients a larger factor makes infinite, as it should
        upstream = tuple(min(factor, 100.0) for factor in upstream)
    leaves = [z.to(dtype).requires_grad_() for z in views(n, d, spread, seed)]
    terms = hsplugin.AlignUniformLoss(0.7, 1.3, alpha, t).components(*leaves)
    sum(u * term for u, term in zip(upstream, terms, strict=True)).backward()

    exact = [z.detach().double().requires_grad_() for z in leaves]
    align, uniform = exact_terms(*exact, alpha, t)
    expected = 0.7 * align + 1.3 * uniform, align, uniform
    sum(u * term for u, term in zip(upstream, expected, strict=True)).backward()

    eps = torch.finfo(terms.loss.dtype).eps
    for term, exact_term in zip(terms, expected, strict=True):
        assert term.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert term.item() == pytest.approx(exact_term.item(), abs=eps * (40 * t + 16))
    for leaf, exact_leaf in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == dtype
        # Some dozens of ulp of what a row's gradient comes to where features are spread.
        scale = (4 * t + 4) / exact_leaf.norm(dim=1).min().item() * sum(map(abs, upstream)) / n
        allowed = eps * (8 * t + 80) * scale
        allowed = allowed + torch.finfo(dtype).eps * exact_leaf.grad.abs().max().item()
        # The smallest step of float16 is what its gradients are rounded to near zero.
        allowed = allowed + torch.finfo(dtype).smallest_normal
        assert (leaf.grad.double() - exact_leaf.grad).abs().max().item() <= allowed


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_gradients_equal_finite_differences(index, alpha):
    x, y = views(6, 4, 1.0, 0)
    loss = hsplugin.AlignUniformLoss(0.7, 1.3, alpha)
    assert torch.autograd.gradcheck(
        lambda a, b: loss.components(a, b)[index], (x.requires_grad_(), y.requires_grad_())
    )


@pytest.mark.parametrize("n", [2, 3, 300, 575, 577, 639, 640, 641, 1000])
def test_batches_of_every_size_have_the_same_definition(n):
    leaves = [z.float().requires_grad_() for z in views(n, 5, 1.0, n)]
    terms = hsplugin.AlignUniformLoss().components(*leaves)
    terms.loss.backward()
    exact = [z.detach().double().requires_grad_() for z in leaves]
    align, uniform = exact_terms(*exact, 2.0, 2.0)
    (align + uniform).backward()
    assert terms.align.item() == pytest.approx(align.item(), rel=1e-5)
    assert terms.uniform.item() == pytest.approx(uniform.item(), rel=1e-5)
    for leaf, exact_leaf in zip(leaves, exact, strict=True):
        error = (leaf.grad.double() - exact_leaf.grad).norm()
        assert error <= 1e-5 * exact_leaf.grad.norm()


def test_each_engine_gives_the_loss_that_is_computed_without_one():
    z_a, z_b = (z.float().requires_grad_() for z in views(64, 32, 1.0, 0))
    small = hsplugin.AlignUniformLoss()(z_a, z_b)
    gradients = torch.autograd.grad(small, (z_a, z_b))
    for backend in ("reference", "tiled"):
        loss = hsplugin.AlignUniformLoss(backend=backend)(z_a, z_b)
        torch.testing.assert_close(small, loss)
        for one, other in zip(gradients, torch.autograd.grad(loss, (z_a, z_b)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("n", [8, 700])
@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-6, 1e18])
def test_short_and_long_rows_have_the_gradient_of_the_definition(n, length):
    x, y = (z.float() for z in views(n, 4, 1.0, 0))
    x[3] = length * normalize(x[3], dim=0)
    leaf = x.requires_grad_()
    terms = hsplugin.AlignUniformLoss().components(leaf, y)
    terms.loss.backward()
    exact = leaf.detach().double().requires_grad_()
    norms = exact.norm(dim=1, keepdim=True)
    unit = exact / torch.where(norms < 1e-6, torch.ones_like(norms), norms)
    other = normalize(y.double(), dim=1)
    uniform = sum(reference.log_mean_potential(z, 2.0) for z in (unit, other)) / 2
    (reference.align(unit, other, 2.0) + uniform).backward()
    assert terms.uniform.item() == pytest.approx(uniform.item(), rel=1e-5)
    for row in (3, 4):
        torch.testing.assert_close(leaf.grad[row].double(), exact.grad[row], rtol=1e-3, atol=1e-12)


def test_poles_at_a_large_t_keep_the_smallest_weights():
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for t in (20.0, 30.0, 1000.0):
        terms = hsplugin.AlignUniformLoss(t=t).components(poles, poles)
        assert terms.uniform.item() == pytest.approx(-4 * t)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.filterwarnings("ignore:.*normalize=False")
def test_what_is_not_finite_makes_the_loss_and_the_gradient_nan(value, normalize_rows):
    x, y = (z.float() for z in views(8, 4, 1.0, 0))
    x[3, 1] = value
    x.requires_grad_()
    terms = hsplugin.AlignUniformLoss(normalize=normalize_rows).components(x, y)
    assert all(term.isnan() for term in terms)
    terms.loss.backward()
    assert x.grad.isnan().any()


def test_one_view_may_be_a_target_that_is_overwritten_before_the_backward_pass():
    x, y = views(8, 4, 1.0, 0)
    x.requires_grad_()
    general = hsplugin.AlignUniformLoss(backend="reference")(x, y)
    (expected,) = torch.autograd.grad(general, x)
    for target in (y.clone(), in_inference_mode(y)):
        given_target = target.clone()
        loss = hsplugin.AlignUniformLoss()(x, target)
        assert torch.equal(target, given_target)
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


def test_batches_of_sets_under_vmap_equal_a_loop():
    a, b = (
        torch.stack(sets) for sets in zip(*[views(9, 4, 1.0, i) for i in range(3)], strict=True)
    )
    for function, sets in (
        (hsplugin.uniform_loss, (a / 3,)),
        (hsplugin.AlignUniformLoss(), (a, b)),
    ):
        alone = torch.stack([function(*each) for each in zip(*sets, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(*sets), alone)


@pytest.mark.parametrize("name", ["align_weight", "uniform_weight"])
def test_weights_that_are_learned_get_their_gradient(name):
    x, y = views(8, 4, 1.0, 0)
    loss = hsplugin.AlignUniformLoss()
    setattr(loss, name, torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64)))
    terms = loss.components(x, y)
    terms.loss.backward()
    expected = terms.align if name == "align_weight" else terms.uniform
    torch.testing.assert_close(getattr(loss, name).grad, expected)


def test_autocast_changes_nothing():
    x, y = (z.float() for z in views(8, 4, 1.0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        within = hsplugin.AlignUniformLoss()(x, y)
    assert torch.equal(within, hsplugin.AlignUniformLoss()(x, y)) and within.dtype == torch.float32


def test_alignment_alone_can_be_differentiated_twice():
    x, y = views(6, 4, 1.0, 0)
    loss = hsplugin.AlignLoss(3.0)
    assert torch.autograd.gradgradcheck(loss, (x.requires_grad_(), y.requires_grad_()))
