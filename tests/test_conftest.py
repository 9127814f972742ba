"""With CI set, a skip for want of something that CI installs fails the run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

MISSING = 'import pytest\npytest.importorskip("missing_in_a_module")\n'
SKIPS = """
import pytest

def test_needs_an_extra(): pytest.importorskip("missing_in_a_test")
def test_needs_a_device(): pytest.skip("needs a CUDA device")
def test_passes(): pass
"""


@pytest.mark.parametrize(
    ("ci", "options", "passes"),
    [
        ("1", [], False),
        ("1", ["-n", "1"], False),
        ("1", ["-k", "device or passes", "--ignore=test_missing.py"], True),
        ("", [], True),
    ],
    ids=["in CI", "in CI by workers", "in CI for an accepted reason", "elsewhere"],
)
def test_ci_accepts_no_skip_for_want_of_an_extra(
    tmp_path: Path, ci: str, options: list[str], passes: bool
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_missing.py").write_text(MISSING)
    (tmp_path / "test_skips.py").write_text(SKIPS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout and "skipped" in done.stdout
    assert done.returncode == (0 if passes else 1)
    refused = [line for line in done.stdout.splitlines() if line.startswith("CI accepts no skip")]
    for name in ("missing_in_a_module", "missing_in_a_test"):
        assert sum(f"could not import '{name}'" in line for line in refused) == (not passes)
    assert len(refused) == (0 if passes else 2)


def test_hypothesis_draws_the_same_examples_in_ci() -> None:
    assert settings.default.derandomize == bool(os.environ.get("CI"))
    assert settings.default.deadline is None


def test_the_port_of_a_test_goes_to_its_ranks_alone(master_port: int) -> None:
    assert os.environ["MASTER_PORT"] == str(master_port)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", master_port))
    with socket.socket() as rank:
        rank.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank.bind(("127.0.0.1", master_port))
        rank.listen()
