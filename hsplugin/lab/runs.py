"""Run many settings, each in a process of its own, skip what is done, collect the results."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.errors import CommandError
from hsplugin.lab.files import remove_leftovers, write_json
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

# Called with a run and an event: {"epoch": ..., "loss": ...}, {"done": True}, {"failed": reason}.
Report = Callable[[RunSettings, dict[str, Any]], None]


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result, and why."""

    settings: RunSettings
    reason: str


def run_all(
    settings_list: Sequence[RunSettings],
    out: Path,
    machine: Machine | None = None,
    report: Report | None = None,
) -> list[Failure]:
    """Do the runs that have no result yet, at most ``machine.jobs`` at a time.

    Each run is a process of its own, so one that fails or is killed leaves the others alone, and
    its peak memory is its own. Killed at any moment and called again, this does what is missing:
    a finished run is skipped, an unfinished one resumes from its last checkpoint. The caller has
    to hold `locked`, so that no other process writes to the same folder.

    Args:
        settings_list: The runs, in the order in which they should be started.
        out: Folder for the results; runs are kept in ``out/runs``.
        machine: Where they run, and how many at a time.
        report: Called with the events of each run.

    Returns:
        The runs that failed; empty when all have their result.

    Raises:
        CommandError: The data cannot be read or the disk is full: every other run would fail in
            the same way. Finished runs are kept.
    """
    report = report or (lambda settings, event: None)
    machine = machine or Machine()
    failures: list[Failure] = []
    for folder in (out, *out.glob("runs/*")):
        remove_leftovers(folder)
    waiting = [s for s in unique(settings_list) if not Run.of(s, out).finished]
    running: dict[Connection, tuple[RunSettings, ForkServerProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < machine.jobs:
                settings = waiting.pop(0)
                connection, process = _start(settings, machine, Run.of(settings, out))
                running[connection] = (settings, process)
            ready = wait(list(running))
            for connection in [c for c in running if c in ready]:
                settings, process = running[connection]
                event = _receive(connection, process)
                if "fatal" in event:
                    raise CommandError(event["fatal"])
                if "failed" in event:
                    failures.append(Failure(settings, event["failed"]))
                report(settings, event)
                if "failed" in event or "done" in event:
                    process.join()
                    del running[connection]
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return failures


def unique(settings_list: Sequence[RunSettings]) -> list[RunSettings]:
    """The settings in their order, each once."""
    return list({settings.name: settings for settings in settings_list}.values())


def require_extra() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        CommandError: Names what is missing and how to install it.
    """
    packages = (
        "filelock kornia lightly matplotlib pandas plotly scipy sklearn torchvision tqdm yaml"
    )
    missing = [name for name in packages.split() if find_spec(name) is None]
    if missing:
        raise CommandError(f"{', '.join(missing)} missing: pip install 'hsplugin[compare]'")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Reserve a folder of results for this process; the lock ends with the process.

    Raises:
        CommandError: The folder cannot be written, another process holds it, or the body met an
            error of the operating system, such as a full disk.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise CommandError(f"another command is writing to {out}; wait for it") from None
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from None
    try:
        yield
    except OSError as error:
        raise CommandError(machine_error(error, out)) from None
    finally:
        lock.release()


def _start(
    settings: RunSettings, machine: Machine, run: Run
) -> tuple[Connection, ForkServerProcess]:
    # Forking a server that has imported everything but computed nothing is fast and safe; a plain
    # fork would copy threads, a fresh interpreter would import for seconds.
    # Threads that spin while they wait slow each other down when runs share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(settings, machine, run, theirs))
    process.start()
    theirs.close()
    return ours, process


PRELOAD = [
    "hsplugin.lab.train",
    "kornia.augmentation",
    "lightly.loss",
    "lightly.models.modules.heads",
    "lightly.utils.benchmarking",
    "pandas",
    "sklearn.linear_model",
]


def _receive(connection: Connection, process: ForkServerProcess) -> dict[str, Any]:
    try:
        event: dict[str, Any] = connection.recv()
        return event
    except EOFError:
        process.join()
        return {"failed": f"its process ended with exit code {process.exitcode}"}


def _child(settings: RunSettings, machine: Machine, run: Run, connection: Connection) -> None:
    def die_with_parent() -> None:
        # The parent never writes: the pipe becomes readable only when the parent is gone.
        wait([connection])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        from hsplugin.lab import train

        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.job, {"settings": settings.as_dict(), "machine": asdict(machine)})
        # Lightning starts the further processes of a DDP run with this very command, unless the
        # main module came from a -m flag.
        sys.argv = [train.__file__, str(run.folder)]
        sys.modules["__main__"].__spec__ = None
        train.train(settings, machine, run, connection.send)
        connection.send({"done": True})
    except CommandError as error:
        connection.send({"fatal": str(error)})
    except KeyboardInterrupt:
        os._exit(130)
    except OSError as error:
        connection.send({"fatal": machine_error(error, run.folder)})
    except Exception as error:
        if "No space left" in str(error) or "file write failed" in str(error):
            connection.send({"fatal": machine_error(OSError(errno.ENOSPC, ""), run.folder)})
            return
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        with suppress(OSError):
            run.error_log.write_text(traceback.format_exc())
        connection.send({"failed": f"{type(error).__name__}: {reason}"})


def machine_error(error: OSError, folder: Path) -> str:
    """What a full or unwritable disk means for the user, in one line."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {folder}; free some and rerun to continue"
    return f"{error.filename or folder}: {error.strerror or error}; fix it and rerun to continue"


def collect(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Gather every finished run below a folder.

    Returns:
        ``(results, history)``: one row per run (what `Run.read_result` gives, and ``run``, the
        folder's name), and one row per measured epoch of each run.
    """
    results, history = [], []
    for run in Run.all_in(out):
        if not run.finished:
            continue
        result = {**run.read_result(), "run": run.name}
        rows = result.pop("history")
        results.append(result)
        for row in rows:
            history.append({k: result[k] for k in ("method", "seed", "run")} | row)
    return results, history
