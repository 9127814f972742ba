"""How the tests run solo-learn's scripts: as its users do, each in a process of its own."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# What is installed is tested as installed; without that, the sources.
INSTALLED = any(importlib.metadata.distributions(name="hsplugin"))
SOURCES = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])

ONE_PROCESS = 'devices="1"'
TWO_PROCESSES = 'devices="02"'
TINY = ["method_kwargs.proj_hidden_dim=32", "method_kwargs.proj_output_dim=16"]


def python(*arguments: object, cwd: Path, fails: bool = False, **env: str) -> str:
    """Run this Python in a folder and return what it printed, or fail with it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("HSPLUGIN_MONITOR", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={
            **inherited,
            **({} if INSTALLED else {"PYTHONPATH": SOURCES}),
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYDRA_FULL_ERROR": "1",
            "OMP_NUM_THREADS": "1",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert (done.returncode != 0) == fails, done.stdout[-10000:]
    return done.stdout


def on_cpu(images: Path, devices: str = ONE_PROCESS) -> list[str]:
    """Overrides that train or evaluate any recipe on an image folder, quickly."""
    return [
        "data.dataset=custom",
        "data.format=image_folder",
        f"data.train_path={images / 'train'}",
        f"data.val_path={images / 'val'}",
        "data.num_workers=0",
        "optimizer.batch_size=16",
        "accelerator=cpu",
        devices,
        "sync_batchnorm=False",
        "precision=32",
        "+enable_progress_bar=False",
        "+log_every_n_steps=1",
    ]


def checkpoint(folder: Path, epoch: int) -> Path:
    """The one checkpoint of an epoch below a folder."""
    [path] = folder.rglob(f"*ep={epoch}.ckpt")
    return path


def logged(folder: Path) -> dict[str, list[float]]:
    """Every value that a run in the folder logged, by whichever logger Lightning chose."""
    columns: dict[str, list[float]] = {}
    events = [*folder.rglob("events.out.tfevents.*")]
    if events:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(events[0].parent)).Reload()
        for name in found.Tags()["scalars"]:
            columns[name] = [event.value for event in found.Scalars(name)]
        return columns
    [path] = folder.rglob("metrics.csv")
    for row in csv.DictReader(path.open()):
        for name, value in row.items():
            if value:
                columns.setdefault(name, []).append(float(value))
    return columns


def config(method: str, **method_kwargs: Any) -> Any:
    """The smallest config from which solo-learn builds a method."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(
        {
            "name": "test",
            "method": method,
            "backbone": {"name": "resnet18"},
            "data": {
                "dataset": "custom",
                "num_classes": 10,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "sgd",
                "batch_size": 8,
                "lr": 0.1,
                "classifier_lr": 0.1,
                "weight_decay": 0.0,
            },
            "scheduler": {"name": "none"},
            "momentum": {"base_tau": 0.9},
            "max_epochs": 1,
            "method_kwargs": {"proj_hidden_dim": 32, "proj_output_dim": 16, **method_kwargs},
        }
    )
    OmegaConf.set_struct(cfg, False)
    return cfg
