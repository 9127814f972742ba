"""Every method of the table: built, stepped, and told about several devices."""

from __future__ import annotations

import inspect

import pytest
import torch

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
        told = [vars(part).get("gather_distributed") for part in learner.criterion.modules()]
        assert True in told and False not in told


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_options_of_the_method(method):
    shared = RunSettings(method).shared()
    for candidate in METHODS[method].candidates:
        assert candidate.items() <= options_of(method, candidate, shared).items()


def test_an_unknown_option_is_refused_with_a_near_match():
    with pytest.raises(CommandError, match="did you mean temperature"):
        options_of("simclr", {"temprature": 1}, RunSettings("simclr").shared())
