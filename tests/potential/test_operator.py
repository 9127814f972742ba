"""The operator beyond its value: torch.compile, autocast, NaN, errors, gradcheck."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

import hsplugin
from hsplugin.potential import log_mean_potential
from tests import reference


def sphere(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("queue", [None, sphere(5, 4, seed=1)])
def test_gradient_equals_finite_differences(backend, queue):
    x = sphere(7, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: log_mean_potential(z, 2.0, queue=queue, backend=backend), x
    )


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_tiles_meet_without_gap_or_overlap(n):
    x, queue = sphere(n, 6), sphere(1500, 6, seed=1)
    results = [
        reference.value_and_gradient(
            lambda z, backend=backend: log_mean_potential(z, 2.0, queue=queue, backend=backend), x
        )
        for backend in ("reference", "tiled")
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-15)


def test_custom_operator_passes_the_checks_of_torch():
    x, queue = sphere(6, 4).requires_grad_(), sphere(3, 4, seed=1)
    for arguments in [
        (x, None, 2.0, True, False, False, "auto", True),
        (x.detach(), queue, 2.0, True, True, False, "tiled", False),
    ]:
        torch.library.opcheck(
            torch.ops.hsplugin.log_mean_potential.default,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_compiles_without_a_graph_break(normalize):
    loss = hsplugin.AlignUniformLoss(normalize=normalize)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    views = [sphere(16, 8, torch.float32, seed) for seed in (0, 1)]
    eager_leaf = views[0].clone().requires_grad_()
    compiled_leaf = views[0].clone().requires_grad_()
    eager, in_graph = loss(eager_leaf, views[1]), compiled(compiled_leaf, views[1])
    eager.backward()
    in_graph.backward()
    torch.testing.assert_close(in_graph, eager)
    torch.testing.assert_close(compiled_leaf.grad, eager_leaf.grad)


def test_compiles_for_every_number_of_rows_and_every_setting():
    def both(x, t):
        return hsplugin.uniform_loss(x, t) + hsplugin.align_loss(x, x.flip(0), alpha=t)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, t in [(5, 1.0), (129, 2.0), (200, 3.5)]:
        x = sphere(n, 4)
        torch.testing.assert_close(compiled(x, t), both(x, t))


@pytest.mark.parametrize("normalize", [True, False])
def test_features_without_values_give_shapes(normalize):
    loss = hsplugin.AlignUniformLoss(normalize=normalize)
    for mode in (torch.device("meta"), FakeTensorMode()):
        with mode:
            x = torch.empty(6, 4, requires_grad=True)
            value = loss(x, x.flip(0))
            value.backward()
        assert value.shape == () and x.grad.shape == (6, 4)


@pytest.mark.parametrize("n", [20, 1000])
def test_features_need_not_be_where_new_tensors_are_by_default(n):
    x = sphere(n, 4, torch.float32)
    with torch.device("meta"):
        within = reference.value_and_gradient(hsplugin.uniform_loss, x)
    torch.testing.assert_close(within, reference.value_and_gradient(hsplugin.uniform_loss, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype):
    x = sphere(64, 32, dtype)
    exact = reference.log_mean_potential(x, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hsplugin.uniform_loss(x)
        in_float32 = hsplugin.uniform_loss(x.float())
    assert value.dtype == in_float32.dtype == torch.float32
    assert abs(value.item() - exact.item()) < 2e-6
    assert value.item() == in_float32.item()


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "queue"])
@pytest.mark.parametrize("mode", [{}, {"include_self": True}, {"intra_batch": False}])
def test_nan_and_infinity_come_out_as_nan(backend, bad, where, mode):
    x, queue = sphere(5, 3, torch.float32), sphere(4, 3, torch.float32, seed=1)
    (x if where == "x" else queue)[2, 1] = bad
    options = dict(mode) if where == "x" and "intra_batch" not in mode else {**mode, "queue": queue}
    leaf = x.clone().requires_grad_()
    value = log_mean_potential(leaf, 2.0, backend=backend, **options)
    assert value.isnan()
    value.backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_losses_turn_nan_and_infinity_into_nan(bad):
    x, y = sphere(5, 3, torch.float32), sphere(5, 3, torch.float32, seed=1)
    x[1, 0] = bad
    for loss in (hsplugin.AlignUniformLoss(), hsplugin.AlignUniformLoss(normalize=False, alpha=1)):
        terms = loss.components(x, y)
        assert terms.loss.isnan() and terms.uniform.isnan() and terms.align.isnan()


@pytest.mark.parametrize("n", [5, 700])  # Gram matrix, tiles
def test_rows_too_long_to_have_a_length_become_nan_and_not_zero(n):
    x, y = sphere(n, 3, torch.float32), sphere(n, 3, torch.float32, seed=1)
    x[1] *= 3e19
    leaf = x.requires_grad_()
    loss = hsplugin.AlignUniformLoss()(leaf, y)
    loss.backward()
    assert loss.isnan() and leaf.grad.isnan().any()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "one zero row", "collapse"])
def test_degenerate_features_have_finite_values_and_bounded_gradients(alpha, kind):
    x = sphere(8, 4, torch.float32)
    if kind == "duplicates":
        x[1] = x[0]
    elif kind == "zeros":
        x.zero_()
    elif kind == "one zero row":
        x[3] = 0
    else:
        x[:] = x[0].clone()
    leaf = x.clone().requires_grad_()
    loss = hsplugin.AlignUniformLoss(alpha=alpha)(leaf, leaf * 1.0)
    loss.backward()
    assert loss.isfinite() and leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() < 100


@pytest.mark.parametrize("mode", [{}, {"queue": sphere(9, 6, seed=1)}])
def test_strided_and_expanded_views_get_their_gradient(mode):
    base = sphere(12, 6).requires_grad_()
    strided = log_mean_potential(base[::2], 2.0, **mode)
    strided.backward()
    leaf = base.detach()[::2].clone().requires_grad_()
    log_mean_potential(leaf, 2.0, **mode).backward()
    torch.testing.assert_close(base.grad[::2], leaf.grad)
    assert base.grad[1::2].count_nonzero() == 0


X = sphere(4, 3, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[:1],), {}, ValueError, "x has 1 row"),
        ((X[:0],), {}, ValueError, "x has 0 row"),
        ((X[0],), {}, ValueError, r"x must have shape \(N, d\)"),
        ((X[None],), {}, ValueError, r"x must have shape \(N, d\)"),
        ((X[:, :0],), {}, ValueError, r"x must have shape \(N, d\)"),
        ((X.long(),), {}, TypeError, "x must hold real floating-point"),
        ((X.to(torch.complex64),), {}, TypeError, "x must hold real floating-point"),
        ((X.tolist(),), {}, TypeError, "x must be a torch.Tensor"),
        ((X, 0), {}, ValueError, "t must be above 0"),
        ((X, -1.0), {}, ValueError, "t must be above 0"),
        ((X, float("nan")), {}, ValueError, "t must be finite"),
        ((X, float("inf")), {}, ValueError, "t must be finite"),
        ((X, "2"), {}, TypeError, "t must be a number"),
        ((X, True), {}, TypeError, "t must be a number"),
        ((X,), {"queue": X[:, :2]}, ValueError, "x and queue must have the same dimension"),
        ((X,), {"queue": X[:0]}, ValueError, "queue has 0 row"),
        ((X,), {"queue": X.double()}, TypeError, "x and queue must have one dtype"),
        ((X,), {"queue": X.to("meta")}, ValueError, "x and queue must be on one device"),
        ((X,), {"intra_batch": False}, ValueError, "pass queue="),
        (
            (X,),
            {"queue": X, "intra_batch": False, "include_self": True},
            ValueError,
            "contradicts intra_batch",
        ),
        ((X,), {"backend": "tilde"}, ValueError, "did you mean tiled"),
        ((X,), {"backend": None}, TypeError, "backend must be a string"),
    ],
)
def test_bad_input_is_named_with_its_remedy(arguments, options, error, message):
    with pytest.raises(error, match=message):
        log_mean_potential(*arguments, **options)


def test_import_takes_nothing_heavier_than_torch():
    heavy = "numpy torchmetrics scipy sklearn lightly lightning pytorch_lightning matplotlib pandas"
    program = (
        "import sys, torch; before = set(sys.modules); import hsplugin; "
        f"print(*(set(sys.modules) - before) & set('{heavy}'.split()))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.split() == []
