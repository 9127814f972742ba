"""A comparison killed anywhere, or out of disk: finished runs are kept, a rerun ends the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compare.running import finish, start, table

METHODS = ("--methods", "simclr", "moco")


def kill_when(process: subprocess.Popen[str], seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not seen():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def assert_same(out: Path, expected: Path) -> None:
    for name in ("results.csv", "history.csv"):
        assert table(out / name) == table(expected / name)
    # A figure is a function of the results.
    assert (out / "plane.png").read_bytes() == (expected / "plane.png").read_bytes()
    assert not list(out.glob("**/*partial*"))


@pytest.mark.slow
def test_killed_in_the_middle_of_a_run_the_rerun_ends_with_the_same_table(compared, tmp_path):
    out = tmp_path / "out"
    # The last run keeps a queue outside its weights: the hardest state to resume.
    kill_when(start(out, *METHODS), lambda: list(out.glob("runs/moco*/last.ckpt")))
    assert not list(out.glob("runs/moco*/result.json"))
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/result.json")}
    assert len(before) == 2
    _, stderr = finish(start(out, *METHODS))
    assert "2 of 3 runs are done already" in stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert_same(out, compared)


@pytest.mark.slow
def test_killed_while_it_draws_the_rerun_ends_with_the_same_table_and_picture(compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    for path in out.glob("*.*"):
        path.unlink()
    kill_when(start(out, *METHODS), (out / "history.csv").exists)
    assert not (out / "histograms.png").exists()
    _, stderr = finish(start(out, *METHODS))
    assert "3 of 3 runs are done already" in stderr
    assert_same(out, compared)


@pytest.mark.slow
def test_killed_again_and_again_at_random_it_still_ends_with_the_same_table(compared, tmp_path):
    out = tmp_path / "out"
    moments = random.Random(0)
    killed = 0
    for _ in range(4):
        (out / ".lease").unlink(missing_ok=True)
        process = start(out, *METHODS)
        while not (out / ".lease").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(4 * moments.random())
        killed += process.poll() is None
        process.kill()
        process.communicate()
    assert killed > 1
    finish(start(out, *METHODS))
    assert_same(out, compared)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "number"),
    [
        (".lease", signal.SIGINT),
        (".lease", signal.SIGTERM),
        ("runs/*/settings.json", signal.SIGINT),
        ("runs/moco*/last.ckpt", signal.SIGTERM),
    ],
)
def test_asked_to_end_it_says_so_in_one_line_and_leaves_no_process(
    compared, tmp_path, seen, number
):
    out = tmp_path / "out"
    process = start(out, *METHODS)
    while not list(out.glob(seen)):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    # This returns when no process that inherited the two pipes is left.
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1] == "hsplugin compare: interrupted; rerun to continue"
    assert "Traceback" not in stderr
    if seen.startswith("runs/moco"):
        finish(start(out, *METHODS))
        assert_same(out, compared)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_while_torch_is_imported_it_says_so_in_one_line(number):
    script = "import sys, hsplugin_command; sys.exit(hsplugin_command.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "compare"], stderr=subprocess.PIPE, text=True
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr == "hsplugin: interrupted; rerun to continue\n"


@pytest.mark.slow
def test_a_server_of_runs_that_is_killed_at_the_start_is_said_in_one_line(tmp_path):
    process = start(tmp_path / "out", *METHODS)
    server = None
    while server is None:
        assert process.poll() is None
        time.sleep(0.01)
        for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if b"multiprocessing.forkserver" in Path(f"/proc/{number}/cmdline").read_bytes():
                server = int(number)
    os.kill(server, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert stderr.count("\n") == 1 and "server that starts the runs was killed" in stderr


WRITER = """
import sys, time
from pathlib import Path
from hsplugin.lab.files import write_json
number = int(sys.argv[2])
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "copies": [number] * 100_000})
"""


@pytest.mark.slow
def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    path, last = tmp_path / "result.json", 0
    moments = random.Random(1)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(last)])
        while not path.exists() or json.loads(path.read_text())["number"] == last:
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(0.05 * moments.random())
        writer.kill()
        writer.wait()
        content = json.loads(path.read_text())
        assert content["number"] > last
        last = content["number"]
        assert content["copies"] == [last] * 100_000


@pytest.mark.slow
def test_a_half_written_file_and_a_missing_table_do_no_harm(compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    (out / "results.csv").unlink()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (out / f".plane.partial-{socket.gethostname()}-{dead.pid}.png").write_bytes(b"cut off")
    finish(start(out, *METHODS))
    assert_same(out, compared)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_what_was_done_is_kept(compared, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "hsplugin-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        process = start(disk / "out", *METHODS)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2
        assert stderr.splitlines()[-1].startswith("hsplugin compare: no space left on the disk of")
        assert "Traceback" not in stderr
        assert list(disk.glob("out/runs/untrained*/result.json"))
        subprocess.run([*mount[:4], "remount,size=50m", *mount[5:]], check=True)
        finish(start(disk / "out", *METHODS))
        assert_same(disk / "out", compared)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
