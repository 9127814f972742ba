"""Which GPUs the runs of a pool get."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hsplugin.errors import CommandError
from hsplugin.lab import pool
from hsplugin.lab.settings import Machine


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv(pool.VISIBLE, raising=False)
    monkeypatch.setenv("PATH", "")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(), [*"01234567"]),
        (Machine(jobs=2), [*"0123456701234567"]),
        (Machine(devices=3), ["0,1,2", "3,4,5"]),
        (Machine(accelerator="cpu", jobs=3), [None, None, None]),
    ],
)
def test_runs_are_dealt_out_to_the_gpus(
    eight: None, machine: Machine, expected: list[str | None]
) -> None:
    assert pool.places(machine) == expected


def test_a_restricted_environment_is_respected(
    eight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(pool.VISIBLE, "MIG-4c1, GPU-77,-1,3")
    assert pool.places(Machine()) == ["MIG-4c1", "GPU-77"]
    with pytest.raises(CommandError, match="--devices 3: only 2 GPUs are visible"):
        pool.places(Machine(devices=3))


LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5e7a)
  MIG 3g.40gb     Device  0: (UUID: MIG-11aa-22)
  MIG 3g.40gb     Device  1: (UUID: MIG-33bb-44)
"""


def test_every_slice_of_a_gpu_in_mig_mode_is_used(
    eight: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n/bin/cat <<END\n{LISTING}END\n")
    tool.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pool.places(Machine()) == ["MIG-11aa-22", "MIG-33bb-44"]


COUNTED = """
import importlib, sys, torch
calls = []
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    setattr(torch._C, name, lambda name=name: calls.append(name) or 0)
from hsplugin.lab.pool import PRELOAD
for name in PRELOAD:
    importlib.import_module(name)
sys.exit(repr(calls) if calls else 0)
"""


@pytest.mark.slow
def test_what_the_server_imports_does_not_touch_a_gpu() -> None:
    # A process forked after that could not use any.
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
