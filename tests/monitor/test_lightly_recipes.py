"""Every example recipe of Lightly, from its repository, unmodified: measured, or refused and why.

The recipes come from a checkout of https://github.com/lightly-ai/lightly, either the one that
HSPLUGIN_LIGHTLY_CHECKOUT names or a fresh clone. They run on a few random images with small
batches for two steps; models, transforms, losses and optimisers are theirs.
"""

from __future__ import annotations

import gc
import os
import random
import re
import runpy
import subprocess
import warnings
from collections.abc import Iterator
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

REPOSITORY = "https://github.com/lightly-ai/lightly"

MEASURED = [
    "barlowtwins",
    "byol",
    "dcl",
    "fastsiam",
    "fda",
    "moco",
    "nnclr",
    "simclr",
    "simsiam",
    "tico",
    "vicreg",
]
SHAPES = r"not called with exactly two floating .* tensors of equal shape but with"
LISTS = SHAPES + r".*a (list|tuple) of"
TARGETS = r"of torch compares predictions with targets, not two views"
SEVERAL = r"it has several criteria"
REFUSED = {
    "aim": TARGETS,
    "capi": SHAPES,
    "densecl": SEVERAL,
    "detcon": SHAPES,
    "dino": LISTS,
    "dinov2": SEVERAL,
    "frossl": LISTS,
    "ibot": SEVERAL,
    "lejepa": SHAPES,
    "mae": TARGETS,
    "mmcr": SHAPES,
    "msn": SHAPES,
    "pixio": TARGETS,
    "pmsn": SHAPES,
    "simmim": TARGETS,
    "smog": TARGETS,
    "swav": LISTS,
    "swav_queue": LISTS,
    "vicregl": LISTS,
}
# Only a note that refers to another example.
WITHOUT_A_MODEL = {"ijepa"}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("HSPLUGIN_LIGHTLY_CHECKOUT")
    checkout = Path(named) if named else tmp_path_factory.mktemp("checkout") / "lightly"
    if not named:
        command = ["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(checkout)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or error
            pytest.skip(f"{REPOSITORY} cannot be cloned ({str(reason).strip()})")
    folder = checkout / "examples" / "pytorch_lightning"
    if not folder.is_dir():
        pytest.skip(f"{checkout} holds no examples/pytorch_lightning")
    return folder


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Free a recipe's gigabytes, which a trainer and its module hold by a cycle, at its end."""
    yield
    gc.collect()


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


@pytest.mark.slow
def test_every_recipe_is_tabled(recipes: Path) -> None:
    found = {path.stem for path in recipes.glob("*.py")}
    assert found == {*MEASURED, *REFUSED, *WITHOUT_A_MODEL}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_recipe_is_measured_and_its_weights_stay_the_same(
    recipes: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(recipes / f"{name}.py", [monitor], monkeypatch)
    (row,) = monitor.history
    assert {"alignment", "uniformity", "uniformity_gap"} <= set(row)
    assert 0 < row["alignment"] <= 4
    assert -8 <= row["uniformity"] <= 0
    assert all("rank" in text or "wasserstein" in text for text in refusals(caught))
    alone = run(recipes / f"{name}.py", [], monkeypatch)
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[key], alone[key]) for key in alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_recipe_is_refused_once_with_the_reason(
    recipes: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert monitor.history == []
    (reason,) = refusals(caught)
    assert re.search(REFUSED[name], reason), reason
    assert "module=" in reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("densecl", "criterion_global"),
        ("mmcr", "projection_head"),
        ("frossl", "projection_head"),
        ("swav", "projection_head"),
        ("byol", "projection_head"),
        ("lejepa", "projection_head"),
        ("simclr", "backbone"),
    ],
)
def test_refused_recipe_is_measured_where_the_submodule_is_named(
    recipes: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1, module=module, strict=True)
    run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert {"alignment", "uniformity", "rankme"} <= set(monitor.history[0])
