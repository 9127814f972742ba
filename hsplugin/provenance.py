"""Which software on which machine made a result."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("hsplugin", "torch", "lightly", "pytorch-lightning", "kornia", "scikit-learn", "numpy")


def machine_facts(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Versions of the software, and processor, threads and GPU of this process."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "source tree"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def in_words(facts: Mapping[str, Any], command: Sequence[str]) -> list[tuple[str, str]]:
    """What `machine_facts` found and the command that was run, as names and texts."""
    machine = (
        f"{facts['processor']}, {facts['cpu_cores']} cores, {facts['threads']} threads a run, "
        f"GPU: {facts['gpu'] or 'none'}; Python {facts['python']} on {facts['platform']}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [("Command", shlex.join(command)), ("Machine", machine), ("Versions", versions)]


def describe(facts: Mapping[str, Any], command: Sequence[str]) -> str:
    """The same as items of a Markdown list."""
    asked, machine, versions = (text for _, text in in_words(facts, command))
    machine = machine.replace(", GPU", ",\n  GPU")
    return f"- Command: `{asked}`\n- Machine: {machine}.\n- Versions: {versions}."


def processor_name() -> str:
    """The model name of the CPU, or what the platform module knows if there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_seconds() -> float:
    """CPU time of this process so far in seconds, summed over its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return round(usage.ru_utime + usage.ru_stime, 2)


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
