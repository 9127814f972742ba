"""From the flags of a command to its settings and machine, with what suits data and hardware."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hsplugin.errors import CommandError, remark
from hsplugin.flags import check, defaults_of, flag, parse_yaml
from hsplugin.lab import log
from hsplugin.lab.data import source
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

AUTO = "auto"
# Names by which Linux lists a processor's instructions for products of bfloat16, where they are
# faster than float32's. avx512_bf16 is on AMD (steps in 0.6 of the time, measured on a Zen 4), and
# is not on a Xeon without AMX (1.2 to 1.4 times the time; examples/lab_throughput.py).
BFLOAT16_INSTRUCTIONS = {"amx_bf16", "bf16"}
BFLOAT16_INSTRUCTIONS_OF_AMD = BFLOAT16_INSTRUCTIONS | {"avx512_bf16"}


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
        CommandError: An impossible value, or a logger that cannot start.
    """
    given = {k: v for k, v in vars(args).items() if k in defaults_of(Machine)}
    given["slurm"] = _slurm_parameters(args.slurm)
    if given["logger"] and getattr(args, "framework", None) == "solo":
        raise CommandError("--logger is for Lightly's methods; solo-learn logs by its own config")
    log.require(given["logger"])
    if given["cluster"] == "slurm":
        return _on_slurm(given, args)
    for name, default in (("partition", None), ("nodes", 1), ("job_folder", None), ("slurm", {})):
        if given[name] != default:
            raise CommandError(f"{flag(name)} needs --cluster slurm")
    _checked(Machine, {**given, "jobs": given["jobs"] or 1})
    _apply_gpus_per_run(given)
    if given["jobs"] is None:
        # Small networks gain far more from running beside each other than from sharing threads;
        # up to 4, for the memory.
        given["jobs"] = min(4, cores()) if _device(given["accelerator"]) == "cpu" else 1
    if (given["threads"] or 1) > cores():
        remark(
            f"--threads {given['threads']} is more than the {cores()} cores here; using {cores()}"
        )
        given["threads"] = cores()
    _checked(Machine, given)
    given["threads"] = given["threads"] or max(1, cores() // given["jobs"])
    return Machine(**given, command=("hsplugin", *sys.argv[1:]))


def add_slurm_flag(parser: argparse.ArgumentParser) -> None:
    """Declare the flag for what else SLURM can be asked for."""
    parser.add_argument(
        "--slurm",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="further parameters of the jobs, by their names in sbatch, such as account=x qos=high",
    )


def cores() -> int:
    """The cores that this process may use, which an allocation or container may restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _apply_gpus_per_run(given: dict[str, Any]) -> None:
    gpus = given["gpus_per_run"]
    if gpus is None:
        return
    kind = "gpu" if gpus else "cpu"
    others = {"gpu": (AUTO, "gpu", "cuda"), "cpu": (AUTO, "cpu")}[kind]
    if given["accelerator"] not in others or (gpus and given["devices"] not in (1, gpus)):
        raise CommandError(
            f"--gpus-per-run {gpus} contradicts --accelerator {given['accelerator']} "
            f"--devices {given['devices']}; give one or the other"
        )
    given["accelerator"], given["devices"] = kind, gpus or given["devices"]


def _on_slurm(given: dict[str, Any], args: argparse.Namespace) -> Machine:
    """The machine of jobs on other nodes: what they have is not known here."""
    given["jobs"] = given["jobs"] or 1
    _checked(Machine, given)
    if given["gpus_per_run"] is None:
        given["gpus_per_run"] = 0 if given["accelerator"] == "cpu" else given["devices"]
    _apply_gpus_per_run(given)
    if find_spec("submitit") is None:
        raise CommandError("--cluster slurm needs submitit: pip install 'hsplugin[compare]'")
    if getattr(args, "framework", None) == "solo" and given["devices"] * given["nodes"] > 1:
        raise CommandError("--framework solo on SLURM runs on one device; leave --devices out")
    return Machine(**given, command=("hsplugin", *sys.argv[1:]))


def _slurm_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["qos=high"]`` into ``{"qos": "high"}``."""
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (equals and key and text):
            raise CommandError(f"--slurm {assignment!r}: write KEY=VALUE, such as qos=high")
        try:
            value = parse_yaml(text)
        except ValueError:
            value = text
        # SLURM writes times and lists as text, some of which YAML takes for numbers.
        plain = isinstance(value, bool | int) and str(value).lower() == text.lower()
        parameters[key.lstrip("-")] = value if plain else text
    return parameters


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
    accelerator = "cpu" if args.gpus_per_run == 0 else args.accelerator
    device = "unknown" if args.cluster == "slurm" else _device(accelerator)
    if args.precision in (None, AUTO):
        there = {run.read_settings()["precision"] for run in Run.all_in(Path(args.out))}
        # A folder keeps its precision on any machine, so that its runs compare.
        if len(there) == 1:
            return str(there.pop())
        if args.cluster == "slurm" and accelerator != "cpu":
            remark(
                "what the nodes multiply in hardware is not known here, so they train in "
                "32-true; --precision bf16-mixed is faster on GPUs from Ampere on"
            )
        # solo-learn computes its losses too in that precision.
        solo = getattr(args, "framework", None) == "solo"
        return "bf16-mixed" if _multiplies_bfloat16(device) and not solo else "32-true"
    if args.precision == "16-mixed" and device == "cpu":
        raise CommandError("--precision 16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true")
    return str(args.precision)


def _multiplies_bfloat16(device: str, facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a device multiplies matrices of bfloat16 faster than those of float32."""
    if device == "cuda":
        # From compute capability 8.0 on; torch also counts emulation as support.
        return torch.cuda.get_device_capability() >= (8, 0) or torch.version.hip is not None
    if device != "cpu" or not facts.exists():
        return False
    text = facts.read_text()
    amd = re.search(r"^vendor_id\s*: AuthenticAMD$", text, re.MULTILINE)
    fast = BFLOAT16_INSTRUCTIONS_OF_AMD if amd else BFLOAT16_INSTRUCTIONS
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return bool(listed and fast & set(listed[1].split()))


def _checked(table: Any, values: dict[str, Any]) -> dict[str, Any]:
    try:
        check(table, values, flag)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None
    return values
