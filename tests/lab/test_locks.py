"""One process at a time writes to a folder: on one machine, and on two that share it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hsplugin.errors import CommandError
from hsplugin.lab import locks
from hsplugin.lab.files import remove_leftovers, write_json
from tests.compare.running import ROOT, finish, start, table

HOLDER = """
import sys, time
from pathlib import Path
from hsplugin.lab import locks
locks.LEASE = float(sys.argv[2])
with locks.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
# Another name and other process numbers make another machine.
ELSEWHERE = ("unshare", "--user", "--map-root-user", "--uts", "--pid", "--fork", "--kill-child")


def can_be_another_machine() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode == 0


another_machine = pytest.mark.skipif(
    not can_be_another_machine(), reason="needs unshare to be another machine"
)


def renamed(command: Sequence[str]) -> list[str]:
    """The command on a machine of another name."""
    return [*ELSEWHERE, "sh", "-c", 'hostname elsewhere; exec "$@"', "sh", *command]


@contextmanager
def holder(folder: Path, *, elsewhere: bool = False, lease: float = 60) -> Iterator[object]:
    command = [sys.executable, "-c", HOLDER, str(folder), str(lease)]
    process = subprocess.Popen(
        renamed(command) if elsewhere else command, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        named = rf"\(process {process.pid} on {socket.gethostname()}\)"  # type: ignore[attr-defined]
        with pytest.raises(CommandError, match=named), locks.locked(tmp_path):
            pass
    began = time.monotonic()
    with locks.locked(tmp_path):
        assert time.monotonic() - began < 5


def test_a_lock_whose_holder_was_killed_before_it_wrote_its_name_is_free(tmp_path: Path) -> None:
    (tmp_path / locks.NAME).touch()
    with locks.locked(tmp_path):
        pass


def test_leftovers_go_and_whole_files_stay(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"a": 1})
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = socket.gethostname()
    living, killed, elsewhere, forgotten = (
        tmp_path / f".result.partial-{writer}.json"
        for writer in (f"{here}-{os.getpid()}", f"{here}-{dead.pid}", "a-b-1", "a-b-2")
    )
    for path in (living, killed, elsewhere, forgotten):
        path.write_text("{")
    os.utime(forgotten, (0, 0))
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / "result.json", living, elsewhere}


@another_machine
@pytest.mark.slow
def test_a_holder_of_another_machine_is_respected_until_it_shows_no_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 3.0)
    with (
        holder(tmp_path, elsewhere=True, lease=3),
        pytest.raises(CommandError, match="on elsewhere"),
        locks.locked(tmp_path),
    ):
        pass
    began = time.monotonic()
    with locks.locked(tmp_path):
        assert time.monotonic() - began > 2


@another_machine
@pytest.mark.slow
def test_two_machines_that_share_a_folder_make_one_table(tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    flags = ("--methods", "simclr")
    first = start(out, *flags)
    while not (out / locks.NAME).exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = start(out, *flags, within=renamed([]))
    finish(first)
    _, stderr = second.communicate(timeout=300)
    if second.returncode != 0:  # it waits for a while only
        assert f"on {socket.gethostname()}); wait for it" in stderr
        finish(start(out, *flags, within=renamed([])))
    finish(start(alone, *flags))
    assert table(out / "results.csv") == table(alone / "results.csv")
