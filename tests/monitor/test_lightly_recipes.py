"""Every example recipe of Lightly, from its repository, unmodified: what is measured of it.

The recipes come from a checkout of https://github.com/lightly-ai/lightly, either the one that
HSPLUGIN_LIGHTLY_CHECKOUT names or a fresh clone. They run on a few random images with small
batches for two steps; models, transforms, losses and optimisers are theirs.
"""

from __future__ import annotations

import gc
import os
import random
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
from tests.monitor.tapping import assert_values_are_by_definition, tapped

REPOSITORY = "https://github.com/lightly-ai/lightly"

CRITERION = "the inputs of 'criterion'"
HEAD = "the output of 'projection_head'"
ANCHOR = "the output of 'anchor_projection_head'"
MEASURED = {
    "barlowtwins": CRITERION,
    "byol": CRITERION,
    "dcl": CRITERION,
    "densecl": "the inputs of 'criterion_global'",
    "detcon": HEAD,
    "dino": "what the prototypes 'student_head.last_layer' score",
    "dinov2": "what the prototypes 'student_head.dino_head.last_layer' score",
    "fastsiam": CRITERION,
    "fda": CRITERION,
    "frossl": HEAD,
    "ibot": "what the prototypes 'student_head.last_layer' score",
    "lejepa": HEAD,
    "mmcr": HEAD,
    "moco": CRITERION,
    "msn": ANCHOR,
    "nnclr": CRITERION,
    "pmsn": ANCHOR,
    "simclr": CRITERION,
    "simsiam": CRITERION,
    "smog": HEAD,
    "swav": HEAD,
    "swav_queue": HEAD,
    "tico": CRITERION,
    "vicreg": CRITERION,
    "vicregl": HEAD,
}
# Their trained networks see one view, or none that is not masked.
WITHOUT_A_PAIR = {"msn", "pmsn", "smog"}
# They have no features but tokens: pooled, of these submodules.
TOKENS = {
    "aim": "the output of 'backbone.norm'",
    "capi": "the output of 'student_head'",
    "mae": "the output of 'backbone.vit.norm'",
    "pixio": "the output of 'backbone.vit.norm'",
    "simmim": "the output of 'backbone.vit.encoder.ln'",
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
    assert found == {*MEASURED, *TOKENS, *WITHOUT_A_MODEL}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_recipe_is_measured_and_its_weights_stay_the_same(
    recipes: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    seen = tapped(monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert monitor.measured == MEASURED[name]
    (row,) = monitor.history
    assert_values_are_by_definition(row, seen)
    assert ("alignment" in row) == (name not in WITHOUT_A_PAIR)
    expected = {"rank", "wasserstein", "pair of views"}
    assert all(any(word in text for word in expected) for text in refusals(caught))
    alone = run(recipes / f"{name}.py", [], monkeypatch)
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[key], alone[key]) for key in alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_recipe_of_tokens_is_measured_if_they_are_pooled(
    recipes: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = GeometryMonitor(["uniformity"], every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert monitor.history == []
    (reason,) = refusals(caught)
    assert "pool='mean'" in reason
    monitor = GeometryMonitor(["uniformity"], every_n_steps=1, pool="mean", strict=True)
    seen = tapped(monitor)
    run(recipes / f"{name}.py", [monitor], monkeypatch)
    assert monitor.measured == TOKENS[name]
    assert_values_are_by_definition(monitor.history[0], seen)


@pytest.mark.slow
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
