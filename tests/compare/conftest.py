"""One small comparison that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compare.running import finish, start


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    stdout, _ = finish(start(out, "--methods", "simclr", "moco"))
    assert "simclr" in stdout and "optimum" in stdout
    return out
