"""Every method of the table: built, stepped, and told about several devices."""

from __future__ import annotations

import inspect

import pytest
import torch
from lightly.models.modules.memory_bank import MemoryBankModule

from hsplugin.errors import CommandError
from hsplugin.lab.data import Images, Split
from hsplugin.lab.learner import Learner
from hsplugin.lab.methods import METHODS, options_of
from hsplugin.lab.settings import RunSettings


def images() -> Images:
    pixels = torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    split = Split(pixels.to(torch.uint8), torch.arange(12) % 3)
    return Images(split, split, split, classes=3, flip=False, colour=False)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_gives_every_trained_part_a_gradient(method):
    torch.manual_seed(0)
    learner = Learner(RunSettings(method), images(), gather=False)
    a, b = learner.augment(images().train.images)
    step = learner.method.step
    loss = step(learner, a, b) if step else learner.loss(learner.project(a), learner.project(b))
    loss.backward()
    for part in (learner.backbone, learner.head, learner.predictor):
        for parameter in part.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_losses_gather_over_devices_where_they_can(method):
    learner = Learner(RunSettings(method), images(), gather=True)
    if "gather_distributed" in inspect.signature(type(learner.criterion).__init__).parameters:
        # Our loss gathers the keys itself before they join the plain bank.
        parts = [m for m in learner.criterion.modules() if type(m) is not MemoryBankModule]
        told = [vars(part).get("gather_distributed") for part in parts]
        assert True in told and False not in told


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_options_of_the_method(method):
    shared = RunSettings(method).shared()
    for candidate in METHODS[method].candidates:
        assert candidate.items() <= options_of(method, candidate, shared).items()


def test_an_unknown_option_is_refused_with_a_near_match():
    with pytest.raises(CommandError, match="did you mean temperature"):
        options_of("simclr", {"temprature": 1}, RunSettings("simclr").shared())


@pytest.mark.parametrize("temperature", [0.25, 0.5])
def test_the_loss_of_a_temperature_is_alignment_and_uniformity_with_its_weights(temperature):
    options = {"temperature": temperature}
    learner = Learner(RunSettings("align_uniform_tau", options=options), images(), gather=False)
    a, b = torch.randn(2, 12, 64, dtype=torch.float64)
    loss = learner.criterion(a, b)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    t = 1 / (2 * temperature)
    uniform = sum((-t * torch.pdist(x).square()).exp().mean().log() / 2 for x in (a, b))
    assert loss.item() == pytest.approx(float(t * (a - b).square().sum(1).mean() + uniform))


@pytest.mark.parametrize("method", METHODS)
def test_only_the_networks_are_autocast(method):
    torch.manual_seed(0)
    learner = Learner(RunSettings(method), images(), gather=False)
    seen = []

    def remember(module, args, kwargs):
        seen.extend(x.dtype for x in (*args, *kwargs.values()))
        seen.append(torch.float32 if not torch.is_autocast_enabled("cpu") else "autocast")

    learner.criterion.register_forward_pre_hook(remember, with_kwargs=True)
    torch.manual_seed(1)
    a, b = learner.augment(images().train.images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        again = learner.augment(images().train.images)
        assert learner.project(a).dtype is torch.bfloat16
        step = learner.method.step
        _ = step(learner, a, b) if step else learner.loss(learner.project(a), learner.project(b))
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert set(seen) == {torch.float32}
