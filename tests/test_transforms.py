"""Derivatives of every order and torch.func's transforms, against the float64 definition."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

import hsplugin
from hsplugin.potential import log_mean_potential, plain
from tests import reference


def rows(n: int, d: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def exact_loss(a: Tensor, b: Tensor, alpha: float = 2.0) -> Tensor:
    a, b = normalize(a.double(), dim=1), normalize(b.double(), dim=1)
    align = (a - b).square().sum(1).pow(alpha / 2).mean()
    uniform = (reference.log_mean_potential(a, 2.0) + reference.log_mean_potential(b, 2.0)) / 2
    return 0.7 * align + 1.3 * uniform


LOSS = hsplugin.AlignUniformLoss(0.7, 1.3)
FORMS = {
    "self": {},
    "include_self": {"include_self": True},
    "queue": {"queue": rows(5, seed=1)},
    "queue_only": {"queue": rows(5, seed=1), "intra_batch": False},
    "queue_include_self": {"queue": rows(5, seed=1), "include_self": True},
}


@pytest.fixture(params=[plain.BLOCK_PAIRS, 20], ids=["one_block", "blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "BLOCK_PAIRS", request.param)


@pytest.mark.parametrize("form", FORMS)
def test_two_derivatives_of_the_potential_equal_finite_differences(blocks, form):
    x = (rows(7) / 2).requires_grad_()
    function = partial(log_mean_potential, t=0.7, **FORMS[form])
    assert gradcheck(function, x, check_forward_ad=True)
    assert gradgradcheck(function, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("form", FORMS)
def test_hessian_equals_that_of_the_definition(blocks, form):
    x = rows(9)
    expected = torch.func.hessian(partial(reference.log_mean_potential, t=2.0, **FORMS[form]))(x)
    function = partial(hsplugin.uniform_loss, **FORMS[form])
    for found in (
        torch.func.hessian(function)(x),
        torch.func.jacrev(torch.func.jacrev(function))(x),
        torch.func.jacfwd(torch.func.jacfwd(function))(x),
        torch.autograd.functional.hessian(function, x),
        torch.autograd.functional.hessian(function, x, vectorize=True),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.filterwarnings("ignore:.*normalize=False")
def test_two_derivatives_of_every_term_equal_finite_differences(alpha, normalize_rows):
    loss = hsplugin.AlignUniformLoss(0.7, 1.3, alpha, normalize=normalize_rows)
    views = [rows(5, 3, seed).requires_grad_() for seed in (0, 1)]
    assert gradcheck(loss.components, views, check_forward_ad=True)
    assert gradgradcheck(lambda a, b: tuple(loss.components(a, b)), views)
    for index in range(3):  # with only some of the upstream gradients
        assert gradgradcheck(lambda a, b, i=index: loss.components(a, b)[i], views, fast_mode=True)


@pytest.mark.parametrize("n", [300, 900])  # Gram matrix, tiles
def test_second_derivatives_of_many_rows_equal_the_definition(n):
    x, direction = rows(n, 6), rows(n, 6, seed=1)
    for function, exact in (
        (hsplugin.uniform_loss, lambda z: reference.log_mean_potential(z, 2.0)),
        (lambda z: LOSS(z, z.flip(0)), lambda z: exact_loss(z, z.flip(0))),
    ):
        products = []
        for f in (function, exact):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
            products.append(torch.autograd.grad((gradient * direction).sum(), leaf)[0])
        torch.testing.assert_close(*products, rtol=1e-10, atol=1e-14)


def third_derivative(function, x):
    for _ in range(2):
        function = partial(gradient_norm, function)
    return torch.autograd.grad(function(x), x)[0]


def gradient_norm(function, x):
    return torch.autograd.grad(function(x), x, create_graph=True)[0].square().sum()


def test_third_derivative_equals_that_of_the_definition(blocks):
    x, y = rows(6).requires_grad_(), rows(6, seed=1)
    found = third_derivative(lambda z: LOSS(z, y), x)
    expected = third_derivative(lambda z: exact_loss(z, y), x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_transforms_equal_those_of_the_definition(blocks, dtype):
    z_a, z_b = rows(8, seed=2, dtype=dtype), rows(8, seed=3, dtype=dtype)
    a, b = z_a.double(), z_b.double()
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    for found, expected in (
        (torch.func.grad(LOSS)(z_a, z_b), torch.func.grad(exact_loss)(a, b)),
        (torch.func.vjp(LOSS, z_a, z_b)[0], exact_loss(a, b)),
        (
            torch.func.jvp(LOSS, (z_a, z_b), (z_b, z_a))[1],
            torch.func.jvp(exact_loss, (a, b), (b, a))[1],
        ),
        (
            torch.func.jacrev(lambda x, y: torch.stack(LOSS.components(x, y)))(z_a, z_b)[0],
            torch.func.grad(exact_loss)(a, b),
        ),
        (torch.func.hessian(LOSS)(z_a, z_b), torch.func.hessian(exact_loss)(a, b)),
        (
            torch.func.vmap(torch.func.grad(LOSS), in_dims=(0, None))(torch.stack([z_a, z_b]), z_b),
            torch.stack([torch.func.grad(exact_loss)(x, b) for x in (a, b)]),
        ),
        (
            torch.func.vmap(lambda x, q: hsplugin.uniform_loss(x, queue=q))(
                torch.stack([z_a, z_b]), torch.stack([z_b, z_a])
            ),
            torch.stack([reference.log_mean_potential(x, 2.0, q) for x, q in ((a, b), (b, a))]),
        ),
        (
            torch.func.grad(hsplugin.align_loss)(z_a, z_b),
            torch.func.grad(lambda x, y: reference.align(x, y, 2.0))(a, b),
        ),
    ):
        assert found.dtype in (dtype, torch.promote_types(dtype, torch.float32))
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_dual_numbers_carry_the_derivative_along_their_tangent():
    x, tangent = rows(7, dtype=torch.float32), rows(7, seed=1, dtype=torch.float32)
    for function in (hsplugin.uniform_loss, lambda z: LOSS(z, z.flip(0))):
        leaf = x.clone().requires_grad_()
        expected = (torch.autograd.grad(function(leaf), leaf)[0] * tangent).sum()
        with forward_ad.dual_level():
            value, along = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
            none = forward_ad.unpack_dual(function(leaf)).tangent
        assert along.dtype == torch.float32 and none is None
        torch.testing.assert_close(value, function(x))
        torch.testing.assert_close(along, expected)


def test_a_gradient_that_records_a_graph_is_the_same_gradient():
    x, y = rows(40, 16, dtype=torch.float32).requires_grad_(), rows(40, 16, 1, torch.float32)
    for function in (hsplugin.uniform_loss, lambda z: LOSS(z, y)):
        (once,) = torch.autograd.grad(function(x), x)
        (recorded,) = torch.autograd.grad(function(x), x, create_graph=True)
        assert torch.equal(once, recorded) and recorded.requires_grad


def test_learning_through_an_inner_step_has_the_gradient_of_finite_differences():
    x, y = rows(6, 3), rows(6, 3, seed=1)

    def after_an_inner_step(weight, log_rate):
        inner = LOSS(x @ weight, y @ weight)
        (step,) = torch.autograd.grad(inner, weight, create_graph=True)
        adapted = weight - log_rate.exp() * step
        return LOSS(x.flip(0) @ adapted, y @ adapted)

    parameters = (rows(3, 4, seed=2).requires_grad_(), torch.zeros(()).double().requires_grad_())
    assert gradcheck(after_an_inner_step, parameters)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "one zero row", "collapse", "same views"])
def test_second_derivatives_of_degenerate_features_are_finite(alpha, kind):
    x, y = rows(8, dtype=torch.float32), rows(8, seed=1, dtype=torch.float32)
    if kind == "duplicates":
        x[1] = x[0]
    elif kind == "zeros":
        x.zero_()
    elif kind == "one zero row":
        x[3] = 0
    elif kind == "collapse":
        x[:] = x[0].clone()
    else:
        y = x.clone()
    loss = hsplugin.AlignUniformLoss(0.7, 1.3, alpha)
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, y), leaf, create_graph=True)
    (penalty,) = torch.autograd.grad(gradient.square().sum(), leaf)
    hessian = torch.func.hessian(loss)(x.detach(), y)
    assert penalty.isfinite().all() and hessian.isfinite().all()
    if kind == "duplicates" and alpha == 2:
        expected = torch.func.hessian(exact_loss)(x.detach().double(), y.double())
        torch.testing.assert_close(hessian.double(), expected, rtol=1e-4, atol=1e-4)


def test_far_apart_rows_at_a_large_t_have_finite_second_derivatives():
    x = rows(6, dtype=torch.float32)
    hessian = torch.func.hessian(partial(hsplugin.uniform_loss, t=1000.0))(x)
    expected = torch.func.hessian(lambda z: reference.log_mean_potential(z, 1000.0))(x.double())
    torch.testing.assert_close(hessian.double(), expected, rtol=1e-2, atol=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad):
    x = rows(6, dtype=torch.float32)
    x[2, 1] = bad
    for options in ({}, {"include_self": True}, {"queue": rows(3, 4, 1, torch.float32)}):
        gradient, value = torch.func.grad_and_value(partial(hsplugin.uniform_loss, **options))(x)
        assert value.isnan() and gradient.isnan().any()


def test_autocast_rounds_no_derivative():
    x, y = rows(16, 8, dtype=torch.float32).requires_grad_(), rows(16, 8, 1, torch.float32)
    seen = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (gradient,) = torch.autograd.grad(LOSS(x, y), x, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), x)
            seen.append((second, torch.func.hessian(LOSS)(x.detach(), y)))
    torch.testing.assert_close(*seen)


def test_checkpointed_features_can_be_differentiated_twice():
    x = rows(6, 3).requires_grad_()
    weight = rows(3, 4, seed=1).requires_grad_()

    def penalty(through):
        (gradient,) = torch.autograd.grad(through(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    def loss(x):
        return LOSS(x @ weight, x.flip(0) @ weight)

    alone = penalty(lambda: loss(x))
    torch.testing.assert_close(penalty(lambda: checkpoint(loss, x, use_reentrant=False)), alone)


def test_a_queue_that_has_changed_since_is_refused_where_it_is_needed_again():
    x, queue = rows(6).requires_grad_(), rows(5, seed=1)
    expected = torch.autograd.grad(hsplugin.uniform_loss(x, queue=queue), x)[0]
    value = hsplugin.uniform_loss(x, queue=queue)
    queue.zero_()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match=r"queue was changed in place.*queue\.clone"):
        gradient.sum().backward()


def test_no_pairs_are_refused_under_a_transform_too():
    with pytest.raises(ValueError, match=r"x has 1 row\(s\)"):
        torch.func.grad(partial(log_mean_potential, gather_distributed=True))(rows(1))


@pytest.mark.slow
def test_memory_of_the_second_derivative_is_linear_in_the_number_of_rows():
    program = """
import resource, torch, hsplugin
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.set_num_threads(1)
def penalty(x):
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(hsplugin.uniform_loss(x), x, create_graph=True)
    gradient.square().sum().backward()
penalty(torch.randn(1500, 16))
x, before = torch.randn(8000, 16) / 4, peak()
penalty(x)
print(peak() - before)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    # The features take 0.5 MiB, all pairs of them 244 MiB, and twice derived several times that.
    assert float(output.stdout) < 100
