"""Runs as jobs of a SLURM cluster, which go on when the command that asked for them ends."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.errors import CommandError, remark
from hsplugin.lab.files import read_json, write_json
from hsplugin.lab.job import Job
from hsplugin.lab.pool import ended
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_BETWEEN_REASONS = 60.0
# NFS may show a file of another machine a minute late.
SECONDS_UNTIL_LOST = 90.0
# SLURM's default MaxArraySize is 1001.
LARGEST_ARRAY = 1000
# A run goes on from its last checkpoint, so that each time limit brings it further.
MOST_TIMEOUTS = 100
# Jobs of this command are known by their name, and by a file that is written before they exist.
PREFIX = "hsplugin-"


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
        A run and an event: the progress after an epoch, or the last event of `perform`. What would
        end every run on one machine is a failure of one run here: the other nodes may be fine.

    Raises:
        CommandError: There is no SLURM, or it refuses the jobs.
    """
    runs = {settings.name: settings for settings in waiting}
    jobs: dict[str, str] = {}
    try:
        jobs = _attach(runs, out)
        if jobs:
            remark(f"attached to {len(jobs)} runs that are queued or running")
        new = [settings for settings in waiting if settings.name not in jobs]
        for start in range(0, len(new), LARGEST_ARRAY):
            jobs |= _submit(new[start : start + LARGEST_ARRAY], out, machine)
        yield from _watch(runs, jobs, out, machine)
    except (KeyboardInterrupt, GeneratorExit, CommandError):
        if jobs:
            ids = " ".join(sorted({job.split("_")[0] for job in jobs.values()}))
            remark(f"the jobs go on; the same command attaches to them, scancel {ids} ends them")
        raise


def _watch(
    runs: Mapping[str, RunSettings], jobs: Mapping[str, str], out: Path, machine: Machine
) -> Iterator[tuple[RunSettings, dict[str, Any]]]:
    told: dict[str, dict[str, Any]] = {}
    alive = dict.fromkeys(jobs, time.monotonic())
    reasons = _Reasons()
    left = list(jobs)
    while left:
        # Before the files are read, so that what a job wrote last is not missed.
        queue = _queue()
        for name in list(left):
            run = Run.of_name(name, out)
            event = {"done": True} if run.finished else run.read_news()
            if queue is None or jobs[name] in queue or event != told.get(name, {}):
                alive[name] = time.monotonic()
            elif time.monotonic() - alive[name] > SECONDS_UNTIL_LOST and not ended(event):
                log = job_folder(out, machine) / f"{jobs[name]}_*_log.err"
                event = {"failed": f"its job {jobs[name]} ended without a result; see {log}"}
            if "fatal" in event:
                event = {"failed": event["fatal"]}
            if event and event != told.get(name):
                told[name] = event
                yield runs[name], event
            if ended(event):
                left.remove(name)
        if left:
            reasons.tell([queue[jobs[n]] for n in left if queue and jobs[n] in queue])
            time.sleep(SECONDS_BETWEEN_LOOKS)


class _Reasons:
    """Tells why jobs wait, when that has changed and not too often."""

    def __init__(self) -> None:
        self.last, self.when = "", time.monotonic()

    def tell(self, queued: Sequence[_Queued]) -> None:
        counts = Counter(job.reason for job in queued if job.state == "PD")
        text = ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))
        if text and text != self.last and time.monotonic() - self.when > SECONDS_BETWEEN_REASONS:
            remark(f"runs that wait, and why: {text}")
            self.last, self.when = text, time.monotonic()


@dataclass(frozen=True)
class _Queued:
    """What squeue tells of a job that is queued or running."""

    state: str
    reason: str
    name: str


def _queue() -> dict[str, _Queued] | None:
    """The jobs of this user that are queued or running; None if SLURM does not answer.

    Those that are about to end are not among them: their run is done, or needs another job.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format", "%i|%t|%r|%j"]
    # What a user wants to see is not what this needs to know.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise CommandError("--cluster slurm: this machine has no squeue, so no SLURM") from None
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode != 0:
        return None
    rows = (line.split("|", 3) for line in asked.stdout.splitlines())
    return {row[0]: _Queued(*row[1:]) for row in rows if len(row) == 4 and row[1] != "CG"}


def _attach(runs: Mapping[str, RunSettings], out: Path) -> dict[str, str]:
    """The jobs of earlier commands that are still queued or running, by the run's name."""
    arrays = {path.stem: path for path in (out / "jobs").glob("*.json")}
    if not arrays:
        return {}
    queue = _queue()
    if queue is None:
        raise CommandError("squeue does not answer, so nobody knows which runs have jobs already")
    found: dict[str, str] = {}
    for token, path in arrays.items():
        own = [job for job, queued in queue.items() if queued.name == f"{PREFIX}{token}"]
        if not own:
            path.unlink(missing_ok=True)
            continue
        try:
            names = [str(name) for name in read_json(path)["runs"]]
            found |= {names[int(job.partition("_")[2] or 0)]: job for job in own}
        except (ValueError, KeyError, TypeError, IndexError):
            raise CommandError(
                f"{path} is damaged; scancel --name {PREFIX}{token}, remove it and rerun"
            ) from None
    return {name: job for name, job in found.items() if name in runs}


def _submit(runs: Sequence[RunSettings], out: Path, machine: Machine) -> dict[str, str]:
    token = uuid.uuid4().hex[:12]
    for settings in runs:
        Run.of(settings, out).news.unlink(missing_ok=True)
    calls = [Job(settings, machine, Run.of(settings, out).folder.resolve()) for settings in runs]
    executor = _executor(out, machine, f"{PREFIX}{token}")
    (out / "jobs").mkdir(exist_ok=True)
    listing = out / "jobs" / f"{token}.json"
    write_json(listing, {"runs": [settings.name for settings in runs]})
    try:
        # submitit prints what sbatch says, and then raises it.
        with redirect_stderr(StringIO()), executor.batch():
            submitted = [executor.submit(call) for call in calls]
        ids = [job.job_id for job in submitted]
    except OSError as error:
        raise CommandError(
            f"cannot write the jobs to {executor.folder}: {error.strerror or error}; "
            "give another --job-folder"
        ) from None
    except Exception as error:
        listing.unlink()
        raise CommandError(f"SLURM refused the jobs: {_refusal(error)}") from None
    remark(
        f"submitted {len(runs)} runs as job {ids[0].split('_')[0]}; logs are in {executor.folder}"
    )
    return {settings.name: job for settings, job in zip(runs, ids, strict=True)}


def _refusal(error: Exception) -> str:
    """What sbatch said, in one line."""
    cause = error.__cause__ or error.__context__ or error
    said = getattr(cause, "stderr", None) or getattr(cause, "output", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split())


def _executor(out: Path, machine: Machine, name: str) -> submitit.AutoExecutor:
    import submitit

    try:
        executor = submitit.AutoExecutor(
            job_folder(out, machine), cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS
        )
    except RuntimeError as error:
        raise CommandError(f"--cluster slurm: {error}") from None
    wishes: dict[str, Any] = {
        "slurm_job_name": name,
        "slurm_partition": machine.partition,
        "slurm_time": machine.timeout,
        "slurm_array_parallelism": machine.array_parallelism,
        # When one rank fails, the others would wait for it.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        # Of a short job, most is left for training.
        "slurm_signal_delay_s": min(90, 15 * machine.timeout),
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
    """Where submitit keeps scripts, pickles and logs of the jobs of a folder.

    Not below ``out``, where others may write: a job executes the pickles that it finds there.
    """
    folder = Path(machine.job_folder or Path.home() / ".hsplugin" / "jobs")
    place = str(out.resolve())
    # SLURM replaces some characters in the names of logs.
    readable = re.sub(r"[^\w.-]+", "-", out.resolve().name)
    return folder.absolute() / f"{readable}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
