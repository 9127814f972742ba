"""Folders that one process at a time writes to, on whatever machines the processes are."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hsplugin.errors import CommandError, remark
from hsplugin.lab.files import machine_error

if TYPE_CHECKING:
    from filelock import LeaseCompromise

# A holder that shows no sign of life for so many seconds, as seen from another machine, is gone.
LEASE = 60.0
NAME = ".lease"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Reserve a folder of results for this process.

    The lock names machine and process. It ends with the process: at once for others on the same
    machine, after `LEASE` seconds without a sign of life for those on other machines.

    Raises:
        CommandError: The folder cannot be written, another process holds it, or the body met an
            error of the operating system, such as a full disk.
    """
    from filelock import Timeout

    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            # Only time tells whether a process of another machine still lives.
            elsewhere = _holder(out)[0] != socket.gethostname()
            stack.enter_context(held(out, wait=1.5 * LEASE if elsewhere else 0))
        except Timeout:
            host, process = _holder(out)
            raise CommandError(
                f"another command is writing to {out} (process {process} on {host}); wait for it"
            ) from None
        except OSError as error:
            raise CommandError(f"cannot write to {out}: {error.strerror}") from None
        try:
            yield
        except OSError as error:
            raise CommandError(machine_error(error, out)) from None


@contextmanager
def held(folder: Path, wait: float = -1) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: The folder.
        wait: Seconds to wait for another holder, without end if negative.

    Raises:
        filelock.Timeout: Another process holds it.
    """
    from filelock import SoftFileLease, Timeout

    lock = SoftFileLease(folder / NAME, lease_duration=LEASE, on_compromise=_stop)
    patience = wait if wait >= 0 else 5.0
    while True:
        _discard_empty(folder / NAME)
        try:
            lock.acquire(timeout=patience, poll_interval=0.2)
            break
        except Timeout:
            if wait >= 0:
                raise
            if patience < LEASE:
                host, process = _holder(folder)
                remark(f"waiting for process {process} on {host}, which is at {folder}")
            patience = 2 * LEASE
    try:
        yield
    finally:
        lock.release()


def _discard_empty(path: Path) -> None:
    """Remove a lock whose holder was killed before it wrote its name, which takes it no time."""
    aside = path.with_name(f"{path.name}-{socket.gethostname()}-{os.getpid()}")
    with suppress(FileNotFoundError):
        empty = path.stat()
        for _ in range(10):
            if path.stat().st_size or path.stat().st_ino != empty.st_ino:
                return
            time.sleep(0.2)
        # Another process may do the same and hold a new lock of this name by now.
        path.rename(aside)
        if aside.stat().st_ino != empty.st_ino or aside.stat().st_size:
            with suppress(FileExistsError):
                path.hardlink_to(aside)
        aside.unlink()


def _stop(loss: LeaseCompromise) -> None:
    # Two writers would spoil each other's files; whoever took the lock goes on.
    remark(f"{loss.lock_file} was taken over ({loss.reason}); stopping")
    os._exit(1)


def _holder(folder: Path) -> tuple[str, str]:
    """Machine and process that the lock of a folder names; of a free one, this machine."""
    try:
        lines = (folder / NAME).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    named = dict(line.split("=", 1) for line in lines if "=" in line)
    return named.get("host", socket.gethostname()), named.get("pid", "unknown")
