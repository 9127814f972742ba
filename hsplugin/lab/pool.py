"""Runs on this machine: a few processes at a time, spread over the GPUs that are visible."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.errors import CommandError
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

# What the server of the processes imports once for all of them. None of it may touch a GPU: the
# processes are forked from there, and each has its own.
PRELOAD = [
    "hsplugin.lab.work",
    "kornia.augmentation",
    "lightly.loss",
    "lightly.models.modules.heads",
    "lightly.utils.benchmarking",
    "pandas",
    "sklearn.linear_model",
]
VISIBLE = "CUDA_VISIBLE_DEVICES"


def events(
    waiting: Sequence[RunSettings], out: Path, machine: Machine
) -> Iterator[tuple[RunSettings, dict[str, Any]]]:
    """Do runs side by side and yield what happens to them.

    When the caller stops early, or fails, the runs end with it.

    Args:
        waiting: The runs, in the order in which they should be started.
        out: Folder for the results.
        machine: Where they run, and how many at a time.

    Yields:
        A run and an event: the progress after an epoch, or the last event of `perform`.

    Raises:
        CommandError: A run met a fault that every other would meet too.
    """
    free = places(machine)
    left = list(waiting)
    running: dict[Connection, tuple[RunSettings, ForkServerProcess, str | None]] = {}
    try:
        while left or running:
            while left and free:
                settings, place = left.pop(0), free.pop(0)
                connection, process = _start(settings, machine, Run.of(settings, out), place)
                running[connection] = (settings, process, place)
            ready = wait(list(running))
            for connection in [c for c in running if c in ready]:
                settings, process, place = running[connection]
                event = _receive(connection, process)
                if "fatal" in event:
                    raise CommandError(event["fatal"])
                yield settings, event
                if ended(event):
                    process.join()
                    del running[connection]
                    free.append(place)
    except KeyboardInterrupt:
        # It may be importing for seconds yet, and would only then see that it is not needed.
        server = getattr(forkserver, "_forkserver", None)
        if pid := getattr(server, "_forkserver_pid", None):
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        for _, process, _ in running.values():
            _kill(process)
        for _, process, _ in running.values():
            process.join()


def ended(event: Mapping[str, Any]) -> bool:
    """Whether an event is the last one of its run."""
    return not event.keys().isdisjoint({"done", "failed", "fatal"})


def places(machine: Machine) -> list[str | None]:
    """What each of the runs at a time finds in CUDA_VISIBLE_DEVICES; None leaves it as it is.

    The GPUs that are visible are dealt out in groups of ``machine.devices``, and each group takes
    ``machine.jobs`` runs. So the first runs go to GPUs of their own.

    Raises:
        CommandError: A run needs more GPUs than are visible.
    """
    gpus = visible_gpus() if machine.accelerator not in ("cpu", "mps") else []
    if not gpus:
        return [None] * machine.jobs
    size = machine.devices
    if size > len(gpus):
        raise CommandError(f"--devices {size}: only {len(gpus)} GPUs are visible")
    starts = range(0, len(gpus) - size + 1, size)
    return [",".join(gpus[start : start + size]) for _ in range(machine.jobs) for start in starts]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes.

    An environment that restricts them is respected, whatever names it uses. Without one, the
    slices of GPUs in MIG mode are listed one by one, as CUDA itself shows only the first of them.
    """
    import torch

    count = torch.cuda.device_count()
    if os.environ.get(VISIBLE) is not None:
        # CUDA ignores what comes after the first name that it does not know.
        return [name.strip() for name in os.environ[VISIBLE].split(",")][:count]
    if count and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        if slices := re.findall(r"UUID: (MIG-[^)\s]+)", listed):
            return slices
    return [str(number) for number in range(count)]


def _start(
    settings: RunSettings, machine: Machine, run: Run, place: str | None
) -> tuple[Connection, ForkServerProcess]:
    # Forking a server that has imported everything but computed nothing is fast and safe; a plain
    # fork would copy threads, a fresh interpreter would import for seconds.
    # Threads that spin while they wait slow each other down when runs share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(settings, machine, run, place, theirs))
    # Both the server and the processes are spared the Ctrl-C that is meant for their parent.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        process.start()
    except (ConnectionError, EOFError, FileNotFoundError):
        raise CommandError(
            "the server that starts the runs was killed; rerun to continue"
        ) from None
    theirs.close()
    return ours, process


def _kill(process: ForkServerProcess) -> None:
    """Kill a run with all that it started, such as other ranks or main_pretrain.py."""
    with suppress(ProcessLookupError):  # before it has a group of its own
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()


def _receive(connection: Connection, process: ForkServerProcess) -> dict[str, Any]:
    try:
        event: dict[str, Any] = connection.recv()
        return event
    except EOFError:
        process.join()
        _kill(process)
        return {"failed": f"its process ended with exit code {process.exitcode}"}


def _child(
    settings: RunSettings, machine: Machine, run: Run, place: str | None, connection: Connection
) -> None:
    def die_with_parent() -> None:
        # The parent never writes: the pipe becomes readable only when the parent is gone.
        wait([connection])
        os.killpg(0, signal.SIGKILL)

    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=die_with_parent, daemon=True).start()
    if place is not None:
        os.environ[VISIBLE] = place
    try:
        from hsplugin.lab.work import perform

        connection.send(perform(settings, machine, run, connection.send))
    except KeyboardInterrupt:
        os._exit(130)
