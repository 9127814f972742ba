"""Lightly's recipes, from its repository, and memory freed after each of them."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = "https://github.com/lightly-ai/lightly"


@pytest.fixture(scope="session")
def lightly_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of Lightly: HSPLUGIN_LIGHTLY_CHECKOUT if set, else a fresh clone."""
    if given := os.environ.get("HSPLUGIN_LIGHTLY_CHECKOUT"):
        return Path(given).resolve()
    checkout = tmp_path_factory.mktemp("checkout") / "lightly"
    command = ["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(checkout)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        pytest.skip(f"{REPOSITORY} cannot be cloned ({str(reason).strip()})")
    return checkout


@pytest.fixture
def freed() -> Iterator[None]:
    """Free a recipe's gigabytes, which a trainer and its module hold by a cycle, at its end."""
    yield
    gc.collect()
