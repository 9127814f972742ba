"""Devices without float64: what runs there, seen operation by operation.

Fake tensors stand for a device that is not here: every operation checks devices, shapes and types,
and raises where the host would have to read a value. On the CPU, treated as if it had no float64,
the same code is held to the definition.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hsplugin
from hsplugin import checks
from hsplugin.metrics import METRICS
from hsplugin.potential import log_mean_potential, plain
from hsplugin.potential.pairs import value_and_gradient
from hsplugin.views import Terms, _evaluate, _gradient
from tests import reference

FORMS = {
    "self": {},
    "include_self": {"include_self": True},
    "queue": {"queue": True},
    "queue_only": {"queue": True, "intra_batch": False},
    "queue_include_self": {"queue": True, "include_self": True},
}


class NoFloat64(TorchDispatchMode):
    """Raises on every float64 tensor, on the CPU too if asked."""

    def __init__(self, on_cpu: bool = False) -> None:
        super().__init__()
        self.on_cpu = on_cpu

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                assert x.device.type == "cpu" and not self.on_cpu, f"{function} made float64"
        return result


def sphere(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def evaluate(x, t, backend, queue=None, intra_batch=True, include_self=False):
    """What the operator computes, without the operator, in which no mode would see anything."""
    return value_and_gradient(x, queue, t, intra_batch, include_self, False, backend, True)


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda"])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_engine_makes_float64_or_waits_for_the_device(device, backend, form, dtype):
    with FakeTensorMode():
        x = torch.empty(2, 1300, 8, device=device, dtype=dtype)
        options = dict(FORMS[form])
        if "queue" in options:
            options["queue"] = torch.empty(700, 8, device=device, dtype=dtype)
        if device == "cuda":
            value, gradient = evaluate(x, 2.0, backend, **options)
        else:
            with NoFloat64():
                value, gradient = evaluate(x, 2.0, backend, **options)
    for y, shape in ((value, ()), (gradient, x.shape)):
        assert y.device.type == device and y.dtype == torch.float32 and y.shape == shape


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_losses_run_on_a_device_that_is_not_here(device):
    # Without gradient: torch's own autograd asks a device for its streams.
    with FakeTensorMode(), NoFloat64():
        a, b = torch.empty(32, 8, device=device), torch.empty(32, 8, device=device)
        terms = [
            *hsplugin.AlignUniformLoss().components(a, b),
            hsplugin.AlignUniformLoss(alpha=1.0, normalize=False)(a, b),
            hsplugin.align_loss(a, b, 3.0),
            hsplugin.uniform_loss(a, queue=b),
        ]
    for term in terms:
        assert term.device.type == device and term.dtype == torch.float32 and term.shape == ()


def test_a_step_and_its_derivatives_make_no_float64(monkeypatch):
    monkeypatch.setattr(checks, "WITH_FLOAT64", set())
    a, b = sphere(8).requires_grad_(), sphere(8, seed=1)
    with NoFloat64(on_cpu=True):
        loss = hsplugin.AlignUniformLoss(backend="tiled")
        (gradient,) = torch.autograd.grad(loss(a, b), a, create_graph=True)
        gradient.square().sum().backward()
        torch.func.jacrev(torch.func.jacrev(loss))(a.detach(), b)
        for alpha in (1.0, 2.0):
            by_label = hsplugin.AlignUniformLoss(alpha=alpha, backend="tiled")
            by_label(a, b, labels=torch.arange(8) // 3).backward()


def test_forward_and_backward_pass_never_wait_for_the_device():
    # Called without torch's autograd, which asks a device for its streams.
    terms = Terms(((0, 1),), alpha=3.0, backend="tiled")
    with FakeTensorMode():
        views, one = torch.empty(2, 32, 8, device="cuda"), torch.empty((), device="cuda")
        values, saved = _evaluate(views, terms, need_gradient=True)
        gradient = _gradient(views, saved, terms, (one, None, one))
        again = plain.mean_potential(views, views[0], 2.0, True, True)
    assert gradient.shape == views.shape and again.shape == ()
    assert {x.device.type for x in (*values, gradient, again)} == {"cuda"}


@pytest.mark.parametrize("t", [0.1, 2.0, 20.0, 1e4])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_sums_in_float32_are_as_good_as_those_in_float64(monkeypatch, backend, t):
    n = 3000 if backend == "reference" else 10_000
    check_sums_in_float32(monkeypatch, sphere(n), backend, t, {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("t", [0.1, 2.0, 1e4, 1e7])
def test_every_form_is_as_good_in_float32(monkeypatch, form, t):
    options = dict(FORMS[form])
    if "queue" in options:
        options["queue"] = sphere(1100, seed=1)
    check_sums_in_float32(monkeypatch, sphere(900), "tiled", t, options)


def check_sums_in_float32(monkeypatch, x, backend, t, options):
    usual_gradient = evaluate(x, t, backend, **options)[1]
    in_float64 = {k: v.double() if k == "queue" else v for k, v in options.items()}
    exact, exact_gradient = evaluate(x.double(), t, backend, **in_float64)
    monkeypatch.setattr(checks, "WITH_FLOAT64", set())
    with NoFloat64(on_cpu=True):
        value, gradient = evaluate(x, t, backend, **options)
    assert value.item() == pytest.approx(exact.item(), rel=2e-6)
    error = (gradient.double() - exact_gradient).norm()
    usual = (usual_gradient.double() - exact_gradient).norm()
    assert error <= 1.5 * usual + 1e-5 * exact_gradient.norm()


def test_the_definition_agrees_with_sums_in_float32(monkeypatch):
    monkeypatch.setattr(checks, "WITH_FLOAT64", set())
    x = sphere(500)
    for t in (0.1, 2.0, 20.0, 1e4):
        value = log_mean_potential(x, t, backend="tiled").item()
        assert value == pytest.approx(reference.log_mean_potential(x, t).item(), rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_keep_their_sums_where_there_is_float64(monkeypatch, name):
    kind = METRICS[name]
    metric = kind.build(num_classes=3)
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        x = torch.empty(20, 8, device="mps")
        inputs = {
            "x": x,
            "y": x,
            "views": torch.empty(20, 2, 8, device="mps"),
            "labels": torch.empty(20, dtype=torch.int64, device="mps"),
        }
        metric.update(*[inputs[what] for what in kind.takes])
    assert {state.device.type for state in metric._states().values()} == {"cpu"}
    # A device that is here and takes the part of one without float64.
    monkeypatch.setattr(checks, "WITH_FLOAT64", {"cpu"})
    moved = kind.build(num_classes=3).to("meta")
    assert {state.device.type for state in moved._states().values()} == {"cpu"}
