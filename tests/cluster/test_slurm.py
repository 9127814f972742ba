"""A comparison on a real SLURM of two nodes ends with the table of a local one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hsplugin.lab.run import Run
from hsplugin.lab.settings import RunSettings
from tests.compare.running import FLAGS, ROOT, finish, start, table

pytestmark = pytest.mark.slow

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
# Jobs cannot know what this machine multiplies in hardware.
PRECISION = ("--precision", "32-true")
# Long enough to be disturbed.
BUDGET = [*("--train-size", "400", "--epochs", "60", "--batch-size", "100", "--seeds", "0")]
BUDGET += [*("--labels-per-class", "3", "--accelerator", "cpu", "--threads", "1", *PRECISION)]


@dataclass
class Slurm:
    """The cluster, and what a front end needs to use it."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """Job -> state of all that are queued or running."""
        listed = self.ask("squeue", "--noheader", "--array", "--format", "%i %T")
        return dict(line.split() for line in listed.splitlines())

    def start_now(self) -> None:
        """Let requeued jobs start without the two minutes that SLURM would wait."""
        for job, state in self.jobs().items():
            if state == "PENDING":
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def flags(self, *more: str) -> tuple[str, ...]:
        """The flags of a comparison on this cluster."""
        return ("--cluster", "slurm", "--job-folder", str(self.folder / "jobs"), *more)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if os.getuid() != 0 or not all(map(shutil.which, NEEDED)):
        pytest.skip("needs SLURM and root: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run(["bash", str(Path(__file__).parent / "slurm.sh"), str(folder)], check=True)
    # Both nodes are this machine; their names mean nothing to its resolver.
    cluster = Slurm(folder, {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"})
    yield cluster
    cluster.ask("scancel", "--user", "root")
    cluster.ask("scontrol", "shutdown")


def wait_for(seen: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    # On a busy machine a job may take minutes to start; a front end that ends is seen at once.
    deadline = time.monotonic() + 900
    while not seen():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def job_of(slurm: Slurm, out: Path, method: str) -> str:
    """The newest job of a run, ended ones included."""
    listed = slurm.ask("squeue", "--states", "all", "--noheader", "--array", "--format", "%i %j")
    (path,) = out.glob("jobs/*.json")
    names = json.loads(path.read_text())["runs"]
    jobs = [job for job, name in map(str.split, listed.splitlines()) if path.stem in name]
    found = {names[int(job.partition("_")[2] or 0)]: job for job in jobs}
    return next(job for name, job in found.items() if name.startswith(f"{method}-"))


def saved(out: Path, method: str) -> list[Path]:
    return list(out.glob(f"runs/{method}-*/last.ckpt"))


def test_jobs_requeued_preempted_killed_and_failing_end_with_the_table_of_a_local_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    methods = ("--methods", "align_uniform", "simclr", "barlowtwins")
    out, locally = tmp_path / "out", tmp_path / "locally"
    front = start(
        out,
        *slurm.flags(*methods, "moco", "--set", "moco.queue=-1"),
        budget=BUDGET,
        environment=slurm.environment,
    )
    wait_for(lambda: saved(out, "align_uniform"), front)
    slurm.ask("scontrol", "requeue", job_of(slurm, out, "align_uniform"))
    wait_for(lambda: saved(out, "simclr"), front)
    # What SLURM sends to a job that it preempts, or whose time is over.
    slurm.ask("scancel", "--signal", "USR2", job_of(slurm, out, "simclr"))
    wait_for(lambda: saved(out, "barlowtwins"), front)
    slurm.ask("scancel", job_of(slurm, out, "barlowtwins"))
    wait_for(lambda: slurm.start_now() or front.poll() is not None)
    _, stderr = front.communicate()
    assert front.returncode == 1
    killed, failing = job_of(slurm, out, "barlowtwins"), "memory bank size (-1, 64)"
    assert f"barlowtwins failed: its job {killed} ended without a result; see " in stderr
    assert failing in stderr and "Traceback" not in stderr
    restarts = {
        method: slurm.ask("scontrol", "show", "job", job_of(slurm, out, method))
        for method in ("align_uniform", "simclr")
    }
    assert all("Restarts=1" in shown for shown in restarts.values()), restarts

    _, stderr = finish(
        start(out, *slurm.flags(*methods), budget=BUDGET, environment=slurm.environment)
    )
    assert "submitted 1 runs" in stderr
    finish(start(locally, *methods, budget=BUDGET))
    for name in ("results.csv", "history.csv"):
        assert table(out / name) == table(locally / name)


def test_a_front_end_that_is_killed_leaves_the_jobs_and_another_attaches(
    slurm: Slurm, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = slurm.flags("--methods", "simclr", "--array-parallelism", "1")
    front = start(out, *flags, budget=BUDGET, environment=slurm.environment)
    wait_for(lambda: saved(out, "simclr"), front)
    job = job_of(slurm, out, "simclr")
    front.send_signal(signal.SIGKILL)
    front.communicate()
    assert slurm.jobs()[job] == "RUNNING"
    front = start(out, *flags, budget=BUDGET, environment=slurm.environment)
    assert front.stderr is not None
    attached = any("attached to 1 runs" in line for line in front.stderr)
    assert attached
    front.send_signal(signal.SIGINT)
    _, stderr = front.communicate()
    assert front.returncode == 130 and "Traceback" not in stderr
    assert f"scancel {job.split('_')[0]} ends them" in stderr
    _, stderr = finish(start(out, *flags, budget=BUDGET, environment=slurm.environment))
    assert "submitted" not in stderr
    assert [row["method"] for row in table(out / "results.csv")] == ["untrained", "simclr"]


def test_a_rank_that_fails_ends_the_job_and_a_finished_run_needs_no_ranks(
    slurm: Slurm, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = slurm.flags("--methods", "moco", "--accelerator", "cpu", "--nodes", "2")
    front = start(out, *flags, "--set", "moco.queue=-1", environment=slurm.environment)
    _, stderr = front.communicate(timeout=300)
    assert front.returncode == 1 and "memory bank size (-1, 64)" in stderr
    wait_for(lambda: not slurm.jobs())
    # As if the result had come between the submission and the start of the job.
    settings = RunSettings(**json.loads(next(out.glob("runs/untr*/settings.json")).read_text()))
    run = Run.of(settings, out)
    script = (
        f"from hsplugin.lab.job import Job; from hsplugin.lab.settings import *; import pathlib; "
        f"Job(RunSettings(method='moco'), Machine(nodes=2, cluster='slurm'), "
        f"pathlib.Path({str(run.folder)!r}))()"
    )
    ranks = ("srun", "--nodes", "2", "--ntasks-per-node", "1", sys.executable, "-c", script)
    done = subprocess.run(ranks, env={**os.environ, **slurm.environment}, cwd=ROOT, timeout=200)
    assert done.returncode == 0


def test_two_nodes_train_as_two_devices_of_one(slurm: Slurm, tmp_path: Path) -> None:
    methods = ("--methods", "align_uniform", "--accelerator", "cpu", *PRECISION)
    out, locally = tmp_path / "out", tmp_path / "locally"
    flags = slurm.flags(*methods, "--nodes", "2", "--slurm", "mem=0", "exclusive=user")
    finish(start(out, *flags, environment=slurm.environment))
    finish(start(locally, *methods, "--devices", "2"))
    for name in ("results.csv", "history.csv"):
        assert table(out / name) == table(locally / name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--partition", "nowhere"), "invalid partition specified: nowhere"),
        (("--slurm", "qos"), "write KEY=VALUE"),
        (("--timeout", "0"), "--timeout must be at least 2"),
    ],
)
def test_what_slurm_refuses_is_said_in_one_line(
    slurm: Slurm, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    front = start(
        tmp_path / "out",
        *slurm.flags("--methods", "simclr", "--accelerator", "cpu", *flags),
        budget=FLAGS,
        environment=slurm.environment,
    )
    _, stderr = front.communicate()
    assert front.returncode == 2
    assert said in stderr and stderr.count("\n") == 1
