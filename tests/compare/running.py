"""How the tests run comparisons: as users do, in a process that can be killed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from hsplugin import cli

ROOT = Path(__file__).parents[2]
FLAGS = ["--train-size", "120", "--epochs", "3", "--batch-size", "40"]
FLAGS += ["--labels-per-class", "3", "--threads", "1", "--jobs", "1", "--seeds", "0"]
# What depends on the clock, the machine or the process, not on the computation.
CLOCK = {"seconds", "cpu_seconds", "images_per_second", "peak_memory_mib", "provenance"}


def start(
    out: Path,
    *flags: str,
    budget: Sequence[str] = FLAGS,
    within: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    """Start a comparison, perhaps within another command such as ``unshare``."""
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "hsplugin.cli", "compare", *budget]
    return subprocess.Popen(
        [*within, *command, "--out", str(out), *flags],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout, stderr


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def error_line(capsys: pytest.CaptureFixture[str], *argv: str, command: str = "compare") -> str:
    assert cli.main([command, *argv]) == 2
    error: str = capsys.readouterr().err
    assert error.startswith(f"hsplugin {command}: ") and error.count("\n") == 1
    assert "Traceback" not in error
    return error
