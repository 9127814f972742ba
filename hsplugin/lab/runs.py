"""Run many settings, skip what is done, collect the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.lab import demands, pool, slurm
from hsplugin.lab.files import remove_leftovers
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

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
        CommandError: A result is damaged, the data cannot be read or does not suffice for a run, or
            the disk is full: every other run would fail in the same way. Finished runs are kept.
    """
    machine = machine or Machine()
    remove_leftovers(out)
    waiting = [s for s in unique(settings_list) if not _done(Run.of(s, out))]
    if waiting:
        demands.check_all(waiting, machine)
    failures = []
    events = slurm.events if machine.cluster == "slurm" else pool.events
    for settings, event in events(waiting, out, machine):
        if "failed" in event:
            failures.append(Failure(settings, event["failed"]))
        if report is not None:
            report(settings, event)
    return failures


def _done(run: Run) -> bool:
    if run.finished:
        run.read_result()  # a damaged one is refused before others are trained
    return run.finished


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
