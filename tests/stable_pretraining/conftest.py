"""Keeps what stable-pretraining writes in the test's folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the test's folder and keep the registry of runs there."""
    import stable_pretraining as spt

    monkeypatch.chdir(tmp_path)
    spt.set(cache_dir=str(tmp_path))
