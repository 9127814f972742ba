"""Every example recipe of Lightly, from its repository, unmodified: what is measured of it.

The recipes come from a checkout of https://github.com/lightly-ai/lightly, either the one that
HSPLUGIN_LIGHTLY_CHECKOUT names or a fresh clone. They run on a few random images with small
batches for two steps; models, transforms, losses and optimisers are theirs.
"""

from __future__ import annotations

import random
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_lightning")
pytest.importorskip("lightly")
pytest.importorskip("torchvision")

import pytorch_lightning
import torchvision
from hsplugin_lightly import GeometryMonitor

from hsplugin.monitor import GeometryWarning
from tests.monitor.tapping import assert_values_are_by_definition, tapped
from tests.monitored_methods import NOTHING, ONE_VIEW, check, methods, tokens

SECTION = "Lightly's examples"
# Only a note that refers to another example.
WITHOUT_A_MODEL = "ijepa"
RECIPES = [name for name in methods(SECTION) if name != WITHOUT_A_MODEL]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("freed")]


@pytest.fixture
def recipes(lightly_checkout: Path) -> Path:
    return lightly_checkout / "examples" / "pytorch_lightning"


class FewImages(torchvision.datasets.FakeData):
    """Random images in the place of a data set that would be downloaded."""

    side: int

    def __init__(self, root: str, **options: Any) -> None:
        shape = (3, self.side, self.side)
        super().__init__(size=8, image_size=shape, num_classes=2, transform=options["transform"])


class SmallImages(FewImages):
    side = 32


class LargeImages(FewImages):
    side = 64


class SmallLoader(torch.utils.data.DataLoader):
    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **{**options, "batch_size": 4, "num_workers": 0})


def run(recipe: Path, callbacks: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Run a recipe for two steps and return the weights it ends with."""
    trained: list[Any] = []

    class ShortTrainer(pytorch_lightning.Trainer):
        def __init__(self, **options: Any) -> None:
            settings = {
                "max_steps": 2,
                "accelerator": "cpu",
                "callbacks": callbacks,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            }
            super().__init__(**{**options, **settings})
            trained.append(self)

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets, "CIFAR10", SmallImages)
        patch.setattr(torchvision.datasets, "VOCDetection", LargeImages)
        patch.setattr(torch.utils.data, "DataLoader", SmallLoader)
        patch.setattr(pytorch_lightning, "Trainer", ShortTrainer)
        runpy.run_path(str(recipe), run_name="__main__")
    (last,) = trained
    assert last.global_step >= 2
    return dict(last.lightning_module.state_dict())


def refusals(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, GeometryWarning)]


def test_every_recipe_is_tabled(recipes: Path) -> None:
    assert sorted(path.stem for path in recipes.glob("*.py")) == methods(SECTION)
    assert "LightningModule" not in (recipes / f"{WITHOUT_A_MODEL}.py").read_text()
    check(SECTION, WITHOUT_A_MODEL, NOTHING, "no model, but a note that refers to another example")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_measured_and_its_weights_stay_the_same(
    recipes: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    seen = tapped(monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(recipes / f"{name}.py", [monitor], monkeypatch)
    if not monitor.history:
        [reason] = refusals(caught)
        assert "pool='mean'" in reason
        monitor = GeometryMonitor(every_n_steps=1, pool="mean")
        seen = tapped(monitor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pair of views
            watched = run(recipes / f"{name}.py", [monitor], monkeypatch)
        check(SECTION, name, NOTHING, tokens(monitor.measured))
    else:
        expected = {"rank", "wasserstein", "pair of views"}
        assert all(any(word in text for word in expected) for text in refusals(caught))
        remark = "" if "alignment" in monitor.history[0] else ONE_VIEW
        check(SECTION, name, monitor.measured, remark)
    assert_values_are_by_definition(monitor.history[0], seen)
    alone = run(recipes / f"{name}.py", [], monkeypatch)
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[key], alone[key]) for key in alone)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("densecl", "criterion_local"),
        ("byol", "projection_head"),
        ("simclr", "backbone"),
    ],
)
def test_recipe_is_measured_where_the_submodule_is_named(
    recipes: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1, module=module, strict=True)
    run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert {"alignment", "uniformity", "rankme"} <= set(monitor.history[0])
