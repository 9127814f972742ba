"""Run many settings, each in a process of its own, skip what is done, collect what there is."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.compare.files import read_json, remove_leftovers, write_json
from hsplugin.compare.settings import Machine, RunSettings
from hsplugin.errors import CommandError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

# Called with a run and its news: {"epoch": ..., "loss": ...}, {"done": True}, {"failed": reason}.
Report = Callable[[RunSettings, dict[str, Any]], None]


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result, and why."""

    settings: RunSettings
    reason: str


def run_folder(out: Path, settings: RunSettings) -> Path:
    """The folder of a run below ``out``; different settings never share one."""
    return out / "runs" / settings.name


def finished(out: Path, settings: RunSettings) -> bool:
    """Whether the run has its result."""
    return (run_folder(out, settings) / "result.json").exists()


def run_all(
    settings_list: Sequence[RunSettings],
    out: Path,
    jobs: int = 1,
    machine: Machine | None = None,
    report: Report | None = None,
) -> list[Failure]:
    """Do the runs that have no result yet, at most ``jobs`` at a time.

    Each run is a process of its own, so one that fails or is killed leaves the others alone, and
    its peak memory is its own. Killed at any moment and called again, this does what is missing:
    a finished run is skipped, an unfinished one goes on from its last checkpoint.

    Args:
        settings_list: The runs, in the order in which they should be started.
        out: Folder for the results; runs are kept in ``out/runs``.
        jobs: How many runs at a time.
        machine: Where they run.
        report: Told about progress, ends and failures.

    Returns:
        The runs that failed; empty when all have their result.

    Raises:
        CommandError: The folder cannot be written or is in use, the data cannot be read, or the
            disk is full: what no other run could survive either. Finished runs are kept.
    """
    report = report or (lambda settings, news: None)
    machine = machine or Machine()
    failures: list[Failure] = []
    with locked(out):
        waiting = [s for s in unique(settings_list) if not finished(out, s)]
        running: dict[Connection, tuple[RunSettings, ForkServerProcess]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    settings = waiting.pop(0)
                    connection, process = _start(settings, machine, out)
                    running[connection] = (settings, process)
                ready = wait(list(running))
                for connection in [c for c in running if c in ready]:
                    settings, process = running[connection]
                    news = _receive(connection, process)
                    if "fatal" in news:
                        raise CommandError(news["fatal"])
                    if "failed" in news:
                        failures.append(Failure(settings, news["failed"]))
                    report(settings, news)
                    if "failed" in news or "done" in news:
                        process.join()
                        del running[connection]
        finally:
            for _, process in running.values():
                process.kill()
                process.join()
    return failures


def suitable_jobs(accelerator: str) -> int:
    """One run a core on a CPU (up to 4, for the memory), one at a time on anything else.

    Small networks gain far more from running beside each other than from sharing threads.
    """
    import torch

    if accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return min(4, os.cpu_count() or 1)
    return 1


def unique(settings_list: Sequence[RunSettings]) -> list[RunSettings]:
    """The settings in their order, each once."""
    return list({settings.name: settings for settings in settings_list}.values())


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process alone; the lock goes with the process, however it ends."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"another comparison is writing to {out}; wait for it") from None
        for place in (out, *out.glob("runs/*")):
            remove_leftovers(place)
        yield


def _start(
    settings: RunSettings, machine: Machine, out: Path
) -> tuple[Connection, ForkServerProcess]:
    # A fork of a server that has imported everything but computed nothing starts at once and is
    # safe, which neither a plain fork (threads) nor a fresh interpreter (seconds) would be.
    # Threads that spin while they wait would ruin each other on a machine that is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    folder = run_folder(out, settings)
    process = context.Process(target=_child, args=(settings, machine, folder, theirs))
    process.start()
    theirs.close()
    return ours, process


PRELOAD = [
    "hsplugin.compare.train",
    "kornia.augmentation",
    "lightly.loss",
    "lightly.models.modules.heads",
    "lightly.utils.benchmarking",
    "sklearn.linear_model",
]


def _receive(connection: Connection, process: ForkServerProcess) -> dict[str, Any]:
    try:
        news: dict[str, Any] = connection.recv()
        return news
    except EOFError:
        process.join()
        return {"failed": f"its process ended with exit code {process.exitcode}"}


def _child(settings: RunSettings, machine: Machine, folder: Path, connection: Connection) -> None:
    def die_with_parent() -> None:
        # The parent never writes: the pipe becomes readable only when the parent is gone.
        wait([connection])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        from hsplugin.compare import train

        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "job.json", {"settings": settings.as_dict(), "machine": asdict(machine)}
        )
        # Lightning starts the further processes of a DDP run with this very command, unless the
        # main module came from a -m flag.
        sys.argv = [train.__file__, str(folder)]
        sys.modules["__main__"].__spec__ = None
        train.run(settings, machine, folder, connection.send)
        connection.send({"done": True})
    except CommandError as error:
        connection.send({"fatal": str(error)})
    except KeyboardInterrupt:
        os._exit(130)
    except OSError as error:
        connection.send({"fatal": machine_error(error, folder)})
    except Exception as error:
        if "No space left" in str(error) or "file write failed" in str(error):
            connection.send({"fatal": machine_error(OSError(errno.ENOSPC, ""), folder)})
            return
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        with suppress(OSError):
            (folder / "error.log").write_text(traceback.format_exc())
        connection.send({"failed": f"{type(error).__name__}: {reason}"})


def machine_error(error: OSError, folder: Path) -> str:
    """What a full or unwritable disk means for the user, in one line."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {folder}; free some and rerun to go on"
    return f"{error.filename or folder}: {error.strerror or error}; mend it and rerun to go on"


def collect(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Gather every finished run below a folder.

    Returns:
        ``(results, history)``: one row per run (settings, measures, ``options`` as a mapping,
        ``run`` the folder's name, ``provenance``), and one row per measured epoch of each run.
    """
    results, history = [], []
    for path in sorted((out / "runs").glob("*/result.json")):
        result = read_json(path)
        result["run"] = path.parent.name
        rows = result.pop("history")
        results.append(result)
        for row in rows:
            history.append({k: result[k] for k in ("method", "seed", "run")} | row)
    return results, history
