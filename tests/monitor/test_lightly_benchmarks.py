"""Every method of Lightly's ImageNet benchmarks, from its repository: what is measured of it.

Modules, heads, losses, optimisers and transforms are theirs, but backbones and decoders have fewer
blocks, the two widest heads fewer dimensions, and two batches of random images are the data.
"""

from __future__ import annotations

import functools
import inspect
import random
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning")
pytest.importorskip("lightly")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

import lightly.models.modules as parts
import lightly.models.modules.heads as heads
import pytorch_lightning
import timm.models.vision_transformer as vit
import torchvision
from hsplugin_lightly import GeometryMonitor
from lightly.data.multi_view_collate import MultiViewCollate
from torchvision.models.resnet import Bottleneck, ResNet

from tests.monitor.tapping import assert_values_are_by_definition, tapped
from tests.monitored_methods import ONE_VIEW, check, methods

SECTION = "Lightly's benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("freed")]


@pytest.fixture
def benchmarks(lightly_checkout: Path) -> Path:
    return lightly_checkout / "benchmarks" / "imagenet"


@pytest.fixture(autouse=True)
def smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = functools.partial(ResNet, Bottleneck, [1, 1, 1, 1])
    monkeypatch.setattr(torchvision.models, "resnet50", resnet)
    narrow = {"hidden_dim": 512, "output_dim": 512}
    smaller: list[tuple[Any, str, dict[str, int]]] = [
        (vit, "vit_base_patch16_224", {"depth": 1}),
        (vit, "vit_small_patch16_224", {"depth": 1}),
        (parts, "MaskedCausalVisionTransformer", {"depth": 1, "embed_dim": 384}),
        (parts, "MaskedVisionTransformerDecoderTIMM", {"depth": 1}),
        (parts, "CAPIPredictorTIMM", {"depth": 1}),
        (parts, "AIMPredictionHead", {"num_blocks": 1}),
        (parts, "BarlowTwinsProjectionHead", narrow),
        (heads, "VICRegProjectionHead", narrow),
    ]
    for module, name, settings in smaller:
        made = getattr(module, name)
        if inspect.isclass(made):  # not replaced, as it names itself in super()
            monkeypatch.setattr(made, "__init__", _with(made.__init__, **settings))
        else:
            monkeypatch.setattr(module, name, _with(made, **settings))


def _with(make: Any, **settings: Any) -> Any:
    return lambda *given, **named: make(*given, **{**named, **settings})


class Images(torch.utils.data.Dataset[Any]):
    """Random images, transformed, with a label and a file name, as LightlyDataset has them."""

    def __init__(self, transform: Any) -> None:
        shape = (3, 64, 64)
        self.images = torchvision.datasets.FakeData(8, shape, num_classes=10, transform=transform)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        views, label = self.images[index]
        return views, int(label), f"{index}.png"


class OneEpoch(pytorch_lightning.Callback):
    """Stops after an epoch of a training whose schedules are of a hundred."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def train(script: Path, monitor: Any) -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    names = runpy.run_path(str(script), run_name=script.stem)
    [method] = [
        kind
        for kind in names.values()
        if inspect.isclass(kind)
        and issubclass(kind, pytorch_lightning.LightningModule)
        and kind.__module__ == script.stem
    ]
    settings = {"batch_size_per_device": 4, "num_classes": 10, "knn_k": 2, "knn_t": 0.1}
    takes = inspect.signature(method).parameters
    data = torch.utils.data.DataLoader(
        Images(names["transform"]),
        batch_size=4,
        collate_fn=MultiViewCollate() if script.parent.name == "vitb16" else None,
    )
    trainer = pytorch_lightning.Trainer(
        max_epochs=100,
        accelerator="cpu",
        callbacks=[monitor, OneEpoch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method(**{name: settings[name] for name in takes if name in settings}), data)


def test_every_benchmark_is_tabled(benchmarks: Path) -> None:
    scripts = [path for path in benchmarks.glob("*/*.py") if path.stem != "main"]
    found = [f"{p.parent.name}/{p.stem}" for p in scripts if not p.stem.endswith("_eval")]
    assert sorted(found) == methods(SECTION)


@pytest.mark.parametrize("name", methods(SECTION))
def test_benchmark_is_measured(benchmarks: Path, name: str) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    seen = tapped(monitor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(benchmarks / f"{name}.py", monitor)
    assert [len(views.x) for views in seen] == [4, 4]
    assert_values_are_by_definition(monitor.history[0], seen)
    check(SECTION, name, monitor.measured, "" if "alignment" in monitor.history[0] else ONE_VIEW)
