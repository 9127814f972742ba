"""The real solo-learn, cloned at the commit tested with, and images to train on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = "https://github.com/vturrisi/solo-learn"
COMMIT = "9187ea39c2c3f43c455ab06664d2b019a9802954"


@pytest.fixture(scope="session")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of solo-learn: HSPLUGIN_SOLO_CHECKOUT if set, else a fresh clone."""
    for module in ("hydra", "lightning", "timm", "einops", "torchvision"):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'hsplugin[solo]'")
    if given := os.environ.get("HSPLUGIN_SOLO_CHECKOUT"):
        return Path(given).resolve()
    checkout = tmp_path_factory.mktemp("solo") / "solo-learn"
    try:
        for command in (
            ["git", "clone", "--quiet", REPOSITORY, str(checkout)],
            ["git", "-C", str(checkout), "checkout", "--quiet", COMMIT],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        pytest.skip(f"{REPOSITORY} cannot be cloned: {reason}")
    return checkout


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


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder, train/ and val/, of six classes that differ in colour."""
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
