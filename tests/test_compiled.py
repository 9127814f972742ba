"""Losses that torch compiles, exports or traces compute what they compute in eager execution."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import hsplugin
from tests import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*normalize=False"),
    # Checks of shapes hold for the traced example alone.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
]
LOSSES = {
    "default": lambda: hsplugin.AlignUniformLoss(),
    "alpha": lambda: hsplugin.AlignUniformLoss(alpha=1.0, t=3.0, normalize=False),
    "align": lambda: hsplugin.AlignLoss(),
    "uniform": lambda: hsplugin.UniformLoss(),
}


class Model(nn.Module):
    """An encoder whose output goes into a loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))
        self.loss = loss

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.loss(self.encoder(a), self.encoder(b))


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, 6, generator=generator).unbind()
    return a, b


def trained(model: Model, call: nn.Module) -> list[Tensor]:
    """Values and weights of some steps, with more rows than a Gram matrix takes in one of them."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    values = []
    for seed, n in enumerate((16, 16, 40, 700)):
        optimiser.zero_grad()
        value = call(*batch(n, seed))
        value.backward()
        optimiser.step()
        values.append(value.detach())
    return [torch.stack(values), *(p.detach() for p in model.parameters())]


# Inductor compiles the network around the loss, which is one operator: two losses will do.
INDUCTOR = [
    pytest.param(name, "inductor", marks=pytest.mark.slow, id=f"{name}-inductor")
    for name in ("default", "align")
]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(("name", "backend"), [*((name, "eager") for name in LOSSES), *INDUCTOR])
def test_training_compiles_into_one_graph(name, backend, dynamic):
    torch._dynamo.reset()
    model, compiled = Model(LOSSES[name]()), Model(LOSSES[name]())
    call = torch.compile(compiled, fullgraph=True, backend=backend, dynamic=dynamic)
    for one, other in zip(trained(model, model), trained(compiled, call), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [torch.func.grad, pytest.param(torch.func.hessian, marks=pytest.mark.slow)],
)
def test_transforms_compile_into_one_graph(transform):
    torch._dynamo.reset()
    a, b = batch(8)
    function = transform(hsplugin.AlignUniformLoss())
    compiled = torch.compile(lambda x, y: function(x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), function(a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_an_exported_model_takes_other_batches_and_trains(name):
    model = Model(LOSSES[name]())
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(model, batch(16), dynamic_shapes=({0: rows}, {0: rows})).module()
    for n in (2, 16, 700):
        value, expected = exported(*batch(n)), model(*batch(n))
        torch.testing.assert_close(value, expected)
        gradients = torch.autograd.grad(value, list(exported.parameters()))
        for one, other in zip(
            gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_what_was_exported_without_gradient_has_one():
    a, b = (x.requires_grad_() for x in batch(16))

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return hsplugin.uniform_loss(x)

    exported = torch.export.export(Alone(), (a.detach(),)).module()
    (gradient,) = torch.autograd.grad(exported(b), b)
    torch.testing.assert_close(gradient, torch.autograd.grad(hsplugin.uniform_loss(b), b)[0])


FUNCTIONS = {
    "uniform_loss": hsplugin.uniform_loss,
    "include_self": lambda x, y: hsplugin.uniform_loss(x, include_self=True),
    "queue": lambda x, y: hsplugin.uniform_loss(x, queue=y),
    "align_loss": hsplugin.align_loss,
    **LOSSES,
}


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trace_holds_no_value_of_its_example(name, dtype, with_gradient):
    function = FUNCTIONS[name]() if name in LOSSES else FUNCTIONS[name]
    taken = 1 if name == "uniform_loss" else 2

    def views(n, seed, requires_grad):
        found = [normalize(x, dim=1).to(dtype) for x in batch(n, seed)]
        return [x.requires_grad_(requires_grad) for x in found[:taken]]

    traced = torch.jit.trace(function, tuple(views(20, 0, with_gradient)))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for n, requires_grad in itertools.product((8, 20, 700), (False, True)):
        given, same = views(n, 1, requires_grad), views(n, 1, requires_grad)
        value, expected = loaded(*given), function(*same)
        torch.testing.assert_close(value, expected)
        if requires_grad:
            value.backward()
            expected.backward()
            for one, other in zip(given, same, strict=True):
                torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_trace_holds_no_class_of_its_example(alpha):
    loss = hsplugin.AlignUniformLoss(alpha=alpha)
    traced = torch.jit.trace(lambda x, c: loss(x, labels=c), (batch(8)[0], torch.arange(8) // 2))
    for n, size in ((8, 4), (8, 1), (20, 7)):  # larger and smaller classes than those traced
        x, labels = batch(n, seed=1)[0].requires_grad_(), torch.arange(n) // size
        value, expected = traced(x, labels), loss(x, labels=labels)
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("loss", [hsplugin.AlignUniformLoss(), hsplugin.UniformLoss()])
def test_a_trace_of_one_row_is_refused_as_its_uniformity_would_stay_zero(loss):
    with pytest.raises(ValueError, match=r"trace with an example of two rows"):
        torch.jit.trace(loss, batch(1))


def test_a_traced_value_is_that_of_the_definition():
    traced = torch.jit.trace(hsplugin.UniformLoss(), batch(8)[0])
    x = batch(9, seed=1)[0]
    expected = reference.log_mean_potential(normalize(x.double(), dim=1), 2.0)
    assert traced(x).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_scripting_names_what_to_use_instead(name):
    loss = LOSSES[name]()
    for module in (loss, Model(loss)):
        with pytest.raises(RuntimeError, match=r"use torch\.compile, torch\.export or"):
            torch.jit.script(module)
