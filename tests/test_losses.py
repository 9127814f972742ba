"""The losses against the definitions of the paper, scipy and Lightly's own implementation."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import hsplugin
from tests import reference


def views(n: int, d: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


@settings(max_examples=80)
@given(
    n=st.integers(2, 300),
    d=st.integers(3, 2048),
    alpha=st.sampled_from([0.5, 1.0, 1.7, 2.0, 3.0, 4.0]),
    t=st.floats(0.1, 1000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_training_loss_is_the_papers(n, d, alpha, t, dtype, seed):
    n = min(n, 30_000 // d + 2)
    x, y = views(n, d, dtype, seed)
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    terms = hsplugin.AlignUniformLoss(0.7, 1.3, alpha, t).components(*leaves)
    terms.loss.backward()

    exact = [x.double().requires_grad_(), y.double().requires_grad_()]
    unit = [normalize(z, dim=1) for z in exact]
    align = reference.align(*unit, alpha)
    uniform = sum(reference.log_mean_potential(z, t) for z in unit) / 2
    (0.7 * align + 1.3 * uniform).backward()

    eps = torch.finfo(terms.loss.dtype).eps
    assert terms.align.item() == pytest.approx(align.item(), rel=20 * eps * alpha)
    assert terms.uniform.item() == pytest.approx(uniform.item(), abs=eps * (40 * t + 16))
    for leaf, exact_leaf in zip(leaves, exact, strict=True):
        step = max(eps * (80 * t + 80), torch.finfo(dtype).eps)
        assert leaf.grad.dtype == dtype
        scale = (4 * t + 4) / exact_leaf.norm(dim=1).min().item()
        assert (leaf.grad.double() - exact_leaf.grad).abs().max().item() <= step * scale


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_gradient_equals_finite_differences(alpha):
    x, y = views(5, 3, torch.float64, 0)
    assert torch.autograd.gradcheck(
        lambda a, b: hsplugin.align_loss(a, b, alpha), (x.requires_grad_(), y.requires_grad_())
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_identical_pairs_have_the_subgradient_zero(alpha):
    x, _ = views(5, 3, torch.float32, 0)
    leaf = x.clone().requires_grad_()
    hsplugin.align_loss(leaf, x, alpha).backward()
    assert leaf.grad.count_nonzero() == 0


@given(dim=st.integers(1, 4096), t=st.floats(1e-3, 15))
def test_optimum_is_the_hypergeometric_function(dim, t):
    expected = -2 * t + math.log(scipy.special.hyp0f1(dim / 2, t * t))
    assert hsplugin.uniformity_optimum(dim, t) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(dim=st.integers(1, 4096), t=st.floats(15, 1e6))
@settings(max_examples=50)
def test_optimum_is_the_bessel_function(dim, t):
    order = dim / 2 - 1
    scaled = scipy.special.ive(order, 2 * t)
    assume(scaled > 1e-300)
    expected = math.lgamma(dim / 2) - order * math.log(t) + math.log(scaled)
    assert hsplugin.uniformity_optimum(dim, t) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t", [0.5, 2.0, 100.0, 1000.0, 1e37])
def test_optimum_on_the_sphere_in_space_has_a_closed_form(t):
    # On S^2 the inner product is uniform on [-1, 1]: mean e^(-2t + 2tu) = (1 - e^(-4t)) / 4t.
    expected = math.log1p(-math.exp(-4 * t)) - math.log(4 * t)
    assert hsplugin.uniformity_optimum(3, t) == pytest.approx(expected, rel=1e-12)


def infonce(z_a: torch.Tensor, z_b: torch.Tensor, tau: float) -> torch.Tensor:
    """NT-Xent less the logarithm of the number of rows in its denominator."""
    z = normalize(torch.cat([z_a, z_b]), dim=1)
    similar = (z @ z.T / tau).fill_diagonal_(-math.inf)
    positives = similar.diagonal(len(z_a)).repeat(2)
    return (similar.logsumexp(1) - positives).mean() - math.log(len(z) - 1)


def with_gradient(loss, *leaves: torch.Tensor) -> tuple[float, torch.Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    value.backward()
    return value.item(), torch.cat([leaf.grad for leaf in leaves])


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_a_temperature_gives_the_limit_of_infonce_at_the_rate_of_the_paper(tau):
    loss = hsplugin.AlignUniformLoss.from_temperature(tau)
    values, gradients = [], []
    for n in (128, 512, 2048):
        x, y = views(n, 16, torch.float64, 0)  # directions uniform on the sphere
        ours, our_gradient = with_gradient(loss, x, y)
        theirs, their_gradient = with_gradient(lambda a, b: infonce(a, b, tau), x, y)
        values.append(abs(ours - theirs))
        gradients.append(((our_gradient - their_gradient).norm() / their_gradient.norm()).item())
    for few, many in itertools.pairwise(values):
        assert few / many == pytest.approx(4, rel=0.2)  # 1 / M
    for few, many in itertools.pairwise(gradients):
        assert 1.8 < few / many < 4  # at least 1 / sqrt(M)
    assert values[-1] < 0.02 and gradients[-1] < 0.04


def test_a_temperature_on_clusters_bounds_infonce_and_keeps_its_gradient():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    sizes = torch.arange(1, 11) * 37  # regions of unequal density
    noise = torch.randn(2, 2035, 64, generator=generator, dtype=torch.float64)
    x, y = (centres.repeat_interleave(sizes, 0) + 0.7 * part for part in noise)
    for tau, cosine, norm in [(0.1, 0.94, 1.1), (0.2, 0.98, 1.03), (0.5, 0.999, 1.01)]:
        loss = hsplugin.AlignUniformLoss.from_temperature(tau)
        ours, our_gradient = with_gradient(loss, x, y)
        theirs, their_gradient = with_gradient(lambda a, b, tau=tau: infonce(a, b, tau), x, y)
        assert ours > theirs  # Jensen's inequality, where anchors differ in potential
        flat = our_gradient.flatten(), their_gradient.flatten()
        assert torch.cosine_similarity(*flat, dim=0) > cosine
        assert 1 / norm < flat[0].norm() / flat[1].norm() < norm


@pytest.mark.parametrize("name", ["align_weight", "uniform_weight", "alpha", "t"])
def test_a_temperature_beside_what_it_determines_is_refused(name):
    with pytest.raises(ValueError, match=f"determines {name}, got {name}=3"):
        hsplugin.AlignUniformLoss.from_temperature(0.5, **{name: 3})


def test_modules_of_the_terms_add_up_to_the_whole():
    x, y = views(20, 8, torch.float32, 0)
    terms = hsplugin.AlignUniformLoss(2.0, 3.0, 1.0, 5.0).components(x, y)
    align = hsplugin.AlignLoss(1.0)(x, y)
    uniform = hsplugin.UniformLoss(5.0)(x, y)
    torch.testing.assert_close(terms.align, align)
    torch.testing.assert_close(terms.uniform, uniform)
    torch.testing.assert_close(terms.loss, 2 * align + 3 * uniform)
    single = (hsplugin.UniformLoss(5.0)(x) + hsplugin.UniformLoss(5.0)(y)) / 2
    torch.testing.assert_close(uniform, single)


def test_alignment_of_many_rows_keeps_the_accuracy_of_float32():
    # Long sums in float32 drift unless they are added up in parts.
    x, y = views(12_000, 512, torch.float32, 0)
    unit = [normalize(z.double(), dim=1) for z in (x, y)]
    expected = reference.align(*unit, 2.0).item()
    assert hsplugin.AlignLoss()(x, y).item() == pytest.approx(expected, rel=2e-6)
    assert hsplugin.align_loss(*(z.float() for z in unit)).item() == pytest.approx(
        expected, rel=2e-6
    )
    whole = hsplugin.AlignUniformLoss().components(x, y)
    assert whole.align.item() == pytest.approx(expected, rel=2e-6)


def test_unnormalised_features_warn_once_when_normalisation_is_off():
    x, y = views(8, 4, torch.float32, 0)
    loss = hsplugin.AlignUniformLoss(normalize=False)
    with pytest.warns(UserWarning, match="normalize=True"):
        loss(x, y)
    quiet = hsplugin.AlignUniformLoss(normalize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(x, y)
        quiet(normalize(x), normalize(y))
        hsplugin.AlignUniformLoss()(x, y)


def test_a_loss_that_has_seen_features_can_be_copied_and_saved():
    x, y = (normalize(z, dim=1) for z in views(8, 4, torch.float32, 0))
    for loss in (hsplugin.AlignUniformLoss(normalize=False), hsplugin.UniformLoss(normalize=False)):
        value = loss(x, y)
        for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert torch.equal(again(x, y), value)


def test_optimum_takes_the_integers_of_numpy():
    assert hsplugin.uniformity_optimum(np.int64(128)) == hsplugin.uniformity_optimum(128)


@pytest.mark.parametrize("v", [2, 3, 5])
def test_views_in_one_tensor_or_one_by_one_average_over_pairs_and_views(v):
    features = torch.randn(12, v, 6, dtype=torch.float64)
    unit = normalize(features, dim=2)
    pairs = itertools.combinations(range(v), 2)
    aligns = [reference.align(unit[:, i], unit[:, j], 1.5).item() for i, j in pairs]
    uniforms = [reference.log_mean_potential(unit[:, i], 3.0).item() for i in range(v)]
    loss = hsplugin.AlignUniformLoss(0.7, 1.3, 1.5, 3.0)
    align, uniform = np.mean(aligns), np.mean(uniforms)
    for terms in (loss.components(features), loss.components(*features.unbind(1))):
        assert [term.item() for term in terms] == pytest.approx(
            [0.7 * align + 1.3 * uniform, align, uniform]
        )
    for one in (hsplugin.AlignLoss(1.5), hsplugin.UniformLoss(3.0)):
        assert one(features) == one(*features.unbind(1))
        expected = align if isinstance(one, hsplugin.AlignLoss) else uniform
        assert one(features).item() == pytest.approx(expected)


def test_features_of_two_views_give_the_loss_and_gradient_of_the_two():
    x, y = views(9, 4, torch.float32, 0)
    stacked, pair = (
        torch.stack([x, y], 1).requires_grad_(),
        (x.requires_grad_(), y.requires_grad_()),
    )
    loss = hsplugin.AlignUniformLoss()
    one, other = loss(stacked), loss(*pair)
    assert torch.equal(one, other)
    (gradient,) = torch.autograd.grad(one, stacked)
    for i, of_view in enumerate(torch.autograd.grad(other, pair)):
        assert torch.equal(gradient[:, i], of_view)


@pytest.mark.parametrize("gather_distributed", [False, True])
def test_a_batch_of_one_row_is_alignment_alone_and_warns_once(gather_distributed):
    x, y = (z.requires_grad_() for z in views(1, 4, torch.float32, 0))
    loss = hsplugin.AlignUniformLoss(3.0, gather_distributed=gather_distributed)
    with pytest.warns(UserWarning, match="batch of one row"):
        terms = loss.components(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = loss.components(x, y)
    align = reference.align(normalize(x.detach()), normalize(y.detach()), 2.0)
    assert terms.align.item() == pytest.approx(align.item())
    assert terms.uniform == 0 and terms.loss == 3 * terms.align
    (gradient,) = torch.autograd.grad(terms.loss, x)
    (expected,) = torch.autograd.grad(3 * hsplugin.AlignLoss()(x, y), x)
    assert torch.equal(gradient, expected)
    # It is the mean over all ordered pairs of one row, the pair with itself.
    assert terms.uniform == hsplugin.uniform_loss(normalize(x.detach()), include_self=True)


def test_uniformity_of_one_row_is_zero_with_the_gradient_zero_or_nan():
    x = torch.randn(1, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="batch of one row"):
        value = hsplugin.UniformLoss()(x)
    value.backward()
    assert value == 0 and x.grad.count_nonzero() == 0
    with pytest.warns(UserWarning, match="batch of one row"):
        assert hsplugin.UniformLoss()(x + math.nan).isnan()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: hsplugin.AlignUniformLoss()(x[:1], x[:1]),
        lambda x: hsplugin.AlignUniformLoss().components(x[:1], x[:1]),
        lambda x: hsplugin.UniformLoss()(x[:1]),
        lambda x: hsplugin.AlignLoss()(x, labels=torch.arange(4)),
        lambda x: hsplugin.AlignLoss(normalize=False)(x, 2 * x),
        lambda x: torch.nn.Sequential(hsplugin.UniformLoss(normalize=False))(2 * x),
    ],
)
def test_warnings_point_to_the_line_that_called_the_loss(call):
    with pytest.warns(UserWarning) as caught:
        call(X)
    assert caught[0].filename == __file__
    assert caught[0].lineno == call.__code__.co_firstlineno


X, Y = views(4, 3, torch.float32, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hsplugin.AlignUniformLoss()(X, Y[:3]), ValueError, "z_a and z_b must be two"),
        (lambda: hsplugin.AlignUniformLoss()(X, Y[:, :1]), ValueError, "z_a and z_b must be two"),
        (lambda: hsplugin.AlignUniformLoss()(X, Y.half()), TypeError, "one dtype"),
        (lambda: hsplugin.AlignUniformLoss()(X, Y.to("meta")), ValueError, "one device"),
        (lambda: hsplugin.AlignUniformLoss()(X, Y.tolist()), TypeError, "z_b must be a torch"),
        (lambda: hsplugin.AlignUniformLoss()(X), ValueError, "takes two views, got z_a alone"),
        (lambda: hsplugin.AlignUniformLoss()(X[:, None]), ValueError, "takes two views, got view"),
        (lambda: hsplugin.AlignUniformLoss()(X[:, :0, None]), ValueError, "z_a holds no views"),
        (lambda: hsplugin.AlignUniformLoss()([X, Y]), TypeError, r"loss\(\*views\)"),
        (lambda: hsplugin.AlignUniformLoss()(X, None, Y), TypeError, "z_b must be a torch"),
        (lambda: hsplugin.AlignUniformLoss()(X, X.int()[:, 0]), TypeError, "classes as labels="),
        (lambda: hsplugin.AlignUniformLoss()(X[None], Y[None]), ValueError, r"loss\(views\)"),
        (lambda: hsplugin.uniform_loss(X[:1]), ValueError, "takes two"),
        (lambda: hsplugin.AlignUniformLoss()(X[:0], Y[:0]), ValueError, "z_a has 0 row"),
        (lambda: hsplugin.AlignUniformLoss(t=0), ValueError, "t must be above 0"),
        (lambda: hsplugin.AlignUniformLoss(t=2e38), ValueError, "t must be at most 1e.37"),
        (lambda: hsplugin.AlignUniformLoss(alpha=-1), ValueError, "alpha must be above 0"),
        (lambda: hsplugin.AlignUniformLoss(align_weight=-1), ValueError, "align_weight must be 0"),
        (lambda: hsplugin.AlignUniformLoss(uniform_weight="1"), TypeError, "uniform_weight must"),
        (lambda: hsplugin.AlignUniformLoss(backend="cuda"), ValueError, "unknown backend 'cuda'"),
        (lambda: hsplugin.UniformLoss(t=float("nan")), ValueError, "t must be finite"),
        (lambda: hsplugin.AlignLoss(alpha=0), ValueError, "alpha must be above 0"),
        (lambda: hsplugin.align_loss(X, Y, 0), ValueError, "alpha must be above 0"),
        (lambda: hsplugin.align_loss(X, Y[:2]), ValueError, "x and y must be two views"),
        (lambda: hsplugin.align_loss(X.int(), Y.int()), TypeError, "x must hold real"),
        (lambda: hsplugin.uniform_loss(X.to_sparse()), TypeError, "x must be a dense tensor"),
        (lambda: hsplugin.uniformity_optimum(0), ValueError, "dim must be at least 1"),
        (lambda: hsplugin.uniformity_optimum(2.5), TypeError, "dim must be an integer"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_public_signatures_are_the_documented_ones():
    parameters = list(inspect.signature(hsplugin.AlignUniformLoss).parameters)
    assert parameters == [
        "align_weight",
        "uniform_weight",
        "alpha",
        "t",
        "normalize",
        "gather_distributed",
        "backend",
    ]
    assert list(inspect.signature(hsplugin.AlignUniformLoss.forward).parameters)[1:] == [
        "z_a",
        "z_b",
        "others",
        "labels",
    ]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_an_infinite_distance_makes_the_gradient_nan_too(alpha):
    far = torch.randn(4, 3)
    far[0] = 1e20
    y = torch.randn(4, 3, requires_grad=True)
    loss = hsplugin.AlignUniformLoss(alpha=alpha, normalize=False)(far, y)
    loss.backward()
    assert loss.isnan()
    assert y.grad[0].isnan().all()


def test_pairs_that_name_no_view_are_refused():
    views = {"z_a": torch.eye(3), "z_b": torch.eye(3)}
    for pairs in ([(0, 2)], [(-1, 0)]):
        with pytest.raises(ValueError, match="indices of the 2 views"):
            hsplugin.AlignUniformLoss().of_views(views, pairs)
    with pytest.raises(ValueError, match="not both"):
        hsplugin.AlignUniformLoss().of_views(views, [(0, 1)], labels=torch.arange(3))
    loss = hsplugin.AlignUniformLoss().of_views(views, iter([(0, 1)])).loss
    assert torch.equal(loss, hsplugin.AlignUniformLoss()(**views))
