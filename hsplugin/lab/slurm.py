"""Runs as jobs of a SLURM cluster, which go on when the command that asked for them ends."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.errors import CommandError
from hsplugin.lab.files import write_json
from hsplugin.lab.pool import ended
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_LOOKS = 5.0
# NFS may show a file of another machine a minute late.
SECONDS_UNTIL_LOST = 90.0
SECONDS_BETWEEN_NEWS = 2.0
# SLURM's default MaxArraySize is 1001.
LARGEST_ARRAY = 1000
# A run goes on from its last checkpoint, so that each time limit brings it further.
MOST_TIMEOUTS = 100


@dataclass(frozen=True)
class Job:
    """One run as a job: what submitit calls on every node and rank of it."""

    settings: RunSettings
    machine: Machine
    folder: Path

    def __call__(self) -> None:
        """Do the run; the first rank leaves word of it in the run's folder."""
        from hsplugin.lab import train
        from hsplugin.lab.work import perform

        run, machine = Run(self.folder), self.machine
        if machine.threads is None:
            there = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
            machine = replace(machine, threads=max(1, there // machine.devices))
        if int(os.environ.get("SLURM_PROCID", "0")) > 0:
            train.train(self.settings, machine, run, lambda event: None)
            return
        last = -SECONDS_BETWEEN_NEWS

        def notify(event: dict[str, Any]) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_NEWS:
                write_json(run.news, event)
                last = time.monotonic()

        write_json(run.news, perform(self.settings, machine, run, notify))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to do when the job is preempted or its time is over: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def events(
    waiting: Sequence[RunSettings], out: Path, machine: Machine
) -> Iterator[tuple[RunSettings, dict[str, Any]]]:
    """Submit the runs that have no job yet, and yield what happens to all of them.

    When the caller stops early, the jobs go on; called again, this attaches to them.

    Args:
        waiting: The runs.
        out: Folder for the results, which all nodes see.
        machine: What to ask of SLURM.

    Yields:
        A run and an event: the progress after an epoch, or the last event of `perform`.

    Raises:
        CommandError: There is no SLURM, it refuses the jobs, or a run met a fault that every other
            would meet too; then the other jobs are cancelled.
    """
    jobs = _attach(waiting, out)
    if jobs:
        _say(f"attached to {len(jobs)} runs that are queued or running")
    new = [settings for settings in waiting if settings.name not in jobs]
    for start in range(0, len(new), LARGEST_ARRAY):
        jobs |= _submit(new[start : start + LARGEST_ARRAY], out, machine)
    try:
        yield from _watch({s.name: s for s in waiting}, jobs, out, job_folder(out, machine))
    except CommandError:
        subprocess.run(["scancel", *jobs.values()], capture_output=True)
        raise
    except (KeyboardInterrupt, GeneratorExit):
        ids = " ".join(sorted({job.split("_")[0] for job in jobs.values()}))
        _say(f"the jobs go on; the same command attaches to them, scancel {ids} ends them")
        raise


def _watch(
    runs: Mapping[str, RunSettings], jobs: Mapping[str, str], out: Path, logs: Path
) -> Iterator[tuple[RunSettings, dict[str, Any]]]:
    told: dict[str, dict[str, Any]] = {}
    seen_alive = dict.fromkeys(jobs, time.monotonic())
    left = list(jobs)
    while left:
        # Before the files are read, so that what a job wrote last is not missed.
        alive = _alive()
        for name in list(left):
            run = Run.of_name(name, out)
            event = run.read_news()
            if run.finished:
                event = {"done": True}
            if alive is None or jobs[name] in alive:
                seen_alive[name] = time.monotonic()
            elif time.monotonic() - seen_alive[name] > SECONDS_UNTIL_LOST and not ended(event):
                log = logs / f"{jobs[name]}_0_log.err"
                event = {"failed": f"its job {jobs[name]} ended without a result; see {log}"}
            if "fatal" in event:
                raise CommandError(event["fatal"])
            if event and event != told.get(name):
                told[name] = event
                yield runs[name], event
            if ended(event):
                left.remove(name)
        if left:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _attach(waiting: Sequence[RunSettings], out: Path) -> dict[str, str]:
    """The jobs of an earlier command that are still queued or running, by the run's name."""
    known = {settings.name: Run.of(settings, out).read_cluster_job() for settings in waiting}
    if not any(known.values()):
        return {}
    alive = _alive()
    if alive is None:
        raise CommandError("squeue does not answer, so nobody knows which runs have jobs already")
    return {name: job for name, job in known.items() if job in alive}


def _alive() -> set[str] | None:
    """The jobs of this user that are queued or running; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise CommandError("--cluster slurm: this machine has no squeue, so no SLURM") from None
    except subprocess.TimeoutExpired:
        return None
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _submit(runs: Sequence[RunSettings], out: Path, machine: Machine) -> dict[str, str]:
    for settings in runs:
        Run.of(settings, out).news.unlink(missing_ok=True)
    executor = _executor(out, machine)
    calls = [Job(settings, machine, Run.of(settings, out).folder.resolve()) for settings in runs]
    try:
        # submitit prints what sbatch says, and then raises it.
        with redirect_stderr(StringIO()), executor.batch():
            submitted = [executor.submit(call) for call in calls]
        ids = [job.job_id for job in submitted]
    except Exception as error:
        raise CommandError(f"SLURM refused the jobs: {_refusal(error)}") from None
    for settings, job in zip(runs, ids, strict=True):
        run = Run.of(settings, out)
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.submitted, {"job": job})
    _say(f"submitted {len(runs)} runs as job {ids[0].split('_')[0]}; logs are in {executor.folder}")
    return {settings.name: job for settings, job in zip(runs, ids, strict=True)}


def _refusal(error: Exception) -> str:
    """What sbatch said, in one line."""
    cause = error.__cause__ or error.__context__ or error
    said = getattr(cause, "stderr", None) or getattr(cause, "output", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split())


def _executor(out: Path, machine: Machine) -> submitit.AutoExecutor:
    import submitit

    # Not below ``out``, where others may write: a job executes the pickles that it finds there.
    folder = job_folder(out, machine)
    try:
        executor = submitit.AutoExecutor(
            folder, cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS
        )
    except RuntimeError as error:
        raise CommandError(f"--cluster slurm: {error}") from None
    wishes: dict[str, Any] = {
        "slurm_job_name": "hsplugin",
        "slurm_partition": machine.partition,
        "slurm_time": machine.timeout,
        "slurm_array_parallelism": machine.array_parallelism,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "nodes": machine.nodes,
        "tasks_per_node": machine.devices,
        "cpus_per_task": machine.threads,
        "gpus_per_node": machine.devices if machine.accelerator == "gpu" else None,
    }
    further: dict[str, Any] = {}
    known = submitit.SlurmExecutor._valid_parameters()
    for key, value in machine.slurm.items():
        if key.replace("-", "_") in known:
            wishes[f"slurm_{key.replace('-', '_')}"] = value
        else:
            further[key] = value
    if further:
        wishes["slurm_additional_parameters"] = further
    executor.update_parameters(**{name: wish for name, wish in wishes.items() if wish is not None})
    return executor


def job_folder(out: Path, machine: Machine) -> Path:
    """Where submitit keeps scripts, pickles and logs of the jobs."""
    folder = Path(machine.job_folder or Path.home() / ".hsplugin" / "jobs")
    return folder.absolute() / out.resolve().name


def _say(text: str) -> None:
    print(f"hsplugin: {text}", file=sys.stderr)
