"""From the flags of a command to its settings and machine, with what suits data and hardware."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from hsplugin.errors import CommandError
from hsplugin.flags import check, defaults_of, flag
from hsplugin.lab.data import source
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

AUTO = "auto"
# Names by which Linux lists a processor's instructions for products of bfloat16.
BFLOAT16_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `RunSettings` that completed flags give, with the data set's defaults.

    Raises:
        CommandError: Unknown data set, an impossible value, or a precision that the hardware lacks.
    """
    data = source(args.data)
    values = {k: v for k, v in vars(args).items() if k in defaults_of(RunSettings)}
    for name, value in vars(data).items():
        if name in values and values[name] is None:
            values[name] = value
    values["precision"] = _precision(args)
    return _checked(RunSettings, values)


def machine(args: argparse.Namespace) -> Machine:
    """The machine that completed flags describe, with jobs and threads that suit it.

    Raises:
        CommandError: An impossible value.
    """
    given = {k: v for k, v in vars(args).items() if k in defaults_of(Machine)}
    if given["jobs"] is None:
        # Small networks gain far more from running beside each other than from sharing threads;
        # up to 4, for the memory.
        on_cpu = _device(args.accelerator) == "cpu"
        given["jobs"] = min(4, os.cpu_count() or 1) if on_cpu else 1
    _checked(Machine, given)
    cores = os.cpu_count() or 1
    if (given["threads"] or 1) > cores:
        print(
            f"hsplugin: --threads {given['threads']} is more than the {cores} cores here; "
            f"using {cores}",
            file=sys.stderr,
        )
        given["threads"] = cores
    given["threads"] = given["threads"] or max(1, cores // given["jobs"])
    return Machine(**given, command=("hsplugin", *sys.argv[1:]))


def _device(accelerator: str) -> str:
    """The device that Lightning will choose.

    Raises:
        CommandError: There is none of this kind, or it is unknown.
    """
    _checked(Machine, {"accelerator": accelerator})
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpu = next((name for name, found in there.items() if found), None)
    if accelerator in (AUTO, "cpu"):
        return gpu if gpu and accelerator == AUTO else "cpu"
    chosen = gpu if accelerator == "gpu" else accelerator
    if chosen is None or not there[chosen]:
        raise CommandError(
            f"--accelerator {accelerator}: this torch finds no such device; use cpu or auto"
        )
    return chosen


def _precision(args: argparse.Namespace) -> str:
    device = _device(args.accelerator)
    if args.precision in (None, AUTO):
        there = {run.read_settings()["precision"] for run in Run.all_in(Path(args.out))}
        # A folder keeps its precision on any machine, so that its runs compare.
        if len(there) == 1:
            return str(there.pop())
        # solo-learn computes its losses too in that precision.
        solo = getattr(args, "framework", None) == "solo"
        return "bf16-mixed" if _multiplies_bfloat16(device) and not solo else "32-true"
    if args.precision == "16-mixed" and device == "cpu":
        raise CommandError("--precision 16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true")
    return str(args.precision)


def _multiplies_bfloat16(device: str, facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware."""
    if device == "cuda":
        # From compute capability 8.0 on; torch also counts emulation as support.
        return torch.cuda.get_device_capability() >= (8, 0) or torch.version.hip is not None
    if device != "cpu" or not facts.exists():
        return False
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", facts.read_text(), re.MULTILINE)
    return bool(listed and BFLOAT16_INSTRUCTIONS & set(listed[1].split()))


def _checked(table: Any, values: dict[str, Any]) -> dict[str, Any]:
    try:
        check(table, values, flag)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None
    return values
