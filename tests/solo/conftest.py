"""The real solo-learn: a clone at the tested commit, images to train on, a way to run scripts."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = "https://github.com/vturrisi/solo-learn"
COMMIT = "9187ea39c2c3f43c455ab06664d2b019a9802954"
ROOT = Path(__file__).resolve().parents[2]

CPU = ["accelerator=cpu", 'devices="1"', "sync_batchnorm=False", "precision=32"]
TINY_PROJECTOR = ["method_kwargs.proj_hidden_dim=32", "method_kwargs.proj_output_dim=16"]

# What is installed is tested as installed; without that, the sources.
INSTALLED = any(importlib.metadata.distributions(name="hsplugin"))
_SOURCES = (
    {} if INSTALLED else {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}
)


@pytest.fixture(scope="session")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of solo-learn: HSPLUGIN_SOLO_CHECKOUT if set, else a fresh clone."""
    for module in ("hydra", "lightning", "timm", "einops"):
        pytest.importorskip(
            module, reason=f"solo-learn needs {module}: pip install 'hsplugin[solo]'"
        )
    if given := os.environ.get("HSPLUGIN_SOLO_CHECKOUT"):
        return Path(given)
    checkout = tmp_path_factory.mktemp("solo") / "solo-learn"
    try:
        for command in (
            ["git", "clone", "--quiet", "--filter=blob:none", REPOSITORY, str(checkout)],
            ["git", "-C", str(checkout), "checkout", "--quiet", COMMIT],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        pytest.skip(f"solo-learn cannot be cloned from {REPOSITORY}: {reason}")
    return checkout


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train/ and val/ of six classes that differ in colour."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in range(6):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 80, (32, 32, 3))
                pixels += (np.arange(3) == label % 3) * 100 + label // 3 * 40
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def on(images: Path) -> list[str]:
    """Overrides that train a recipe on the images, quickly."""
    return [
        "data.dataset=custom",
        "data.format=image_folder",
        f"data.train_path={images / 'train'}",
        f"data.val_path={images / 'val'}",
        "data.num_workers=0",
        "optimizer.batch_size=16",
        "+enable_progress_bar=False",
        "+log_every_n_steps=1",
        *CPU,
    ]


@pytest.fixture(scope="session")
def methods(solo: Path) -> dict[str, Any]:
    """``solo.methods.METHODS`` with ours registered, in this process."""
    sys.path.insert(0, str(solo))
    try:
        from hsplugin_solo import register
        from solo.methods import METHODS

        register()
    finally:
        sys.path.remove(str(solo))
    return METHODS


def python(*arguments: str | Path, cwd: Path, fails: bool = False, **env: str) -> str:
    """Run this Python as a user would and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            **_SOURCES,
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYDRA_FULL_ERROR": "1",
            "OMP_NUM_THREADS": "1",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout[-10000:]
    return done.stdout
