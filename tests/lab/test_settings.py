"""Names of runs, which earlier results are found by, and the bounds of settings."""

from __future__ import annotations

import math

import pytest

from hsplugin.lab.settings import Machine, RunSettings


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"method": "simclr"}, "simclr-seed0-5f89dd40"),
        ({"method": "untrained", "seed": 3}, "untrained-seed3-5f89dd40"),
        (
            {
                "method": "align_uniform",
                "data": "fashion-mnist",
                "train_size": 8000,
                "epochs": 20,
                "validations": 2,
                "options": {"uniform_weight": 0.5},
            },
            "align_uniform-seed0-a096dd67",
        ),
        (
            {
                "method": "moco",
                "data": "digits",
                "epochs": 30,
                "batch_size": 128,
                "labels_per_class": 5,
                "validations": 2,
                "seed": 1,
                "options": {"temperature": 0.2, "momentum": 0.95},
            },
            "moco-seed1-1cbc267e",
        ),
        (
            {
                "method": "byol",
                "framework": "solo",
                "backbone": "resnet18",
                "precision": "bf16-mixed",
                "dim": 128,
                "lr": 1e-3,
                "weight_decay": 0.0,
                "image_size": 32,
                "data": "cifar10",
            },
            "byol-seed0-bd594b35",
        ),
    ],
)
def test_names_are_those_of_results_that_exist(given, name):
    # Literal names of the first release: another digest would lose every earlier result.
    assert RunSettings(**given).name == name


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("batch_size", 1, ValueError),
        ("dim", 1, ValueError),
        ("lr", 0.0, ValueError),
        ("lr", math.nan, ValueError),
        ("lr", math.inf, ValueError),
        ("weight_decay", -1e-9, ValueError),
        ("seed", "one", TypeError),
        ("seed", True, TypeError),
        ("validations", 0, ValueError),
        ("train_size", 1, ValueError),
        ("labels_per_class", -1, ValueError),
        ("framework", "solo-learn", ValueError),
        ("backbone", 18, TypeError),
    ],
)
def test_nonsense_is_refused_by_the_name_of_the_setting(name, value, error):
    with pytest.raises(error, match=name):
        RunSettings("simclr", **{name: value})


@pytest.mark.parametrize("name", ["jobs", "threads", "devices"])
def test_a_machine_has_at_least_one_of_each(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Machine(**{name: 0})


def test_the_least_values_are_taken():
    least = {"epochs": 1, "batch_size": 2, "dim": 2, "train_size": 2, "weight_decay": 0, "seed": -1}
    assert RunSettings("simclr", validations=1, labels_per_class=1, **least).dim == 2
    # 0 means all, and is the same run.
    assert RunSettings("simclr", labels_per_class=0) == RunSettings("simclr")
