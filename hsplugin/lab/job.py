"""One run as a job of a cluster: what each of its ranks does, and how they agree to start."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsplugin.lab.files import read_json, write_json
from hsplugin.lab.methods import UNTRAINED
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

SECONDS_BETWEEN_NEWS = 2.0


@dataclass(frozen=True)
class Job:
    """What submitit calls on every rank of a job.

    The first rank holds the run's folder. The others wait for its word: whether there is anything
    to train, and whether from a checkpoint, which a file system may show to each of them at
    another time.
    """

    settings: RunSettings
    machine: Machine
    folder: Path

    def __call__(self) -> None:
        """Do the run; the first rank leaves word of it in the run's folder."""
        machine = self.machine
        if machine.threads is None:
            there = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
            machine = replace(machine, threads=max(1, there // machine.devices))
        if int(os.environ.get("SLURM_PROCID", "0")) == 0:
            self._lead(machine)
        elif self.settings.method != UNTRAINED:
            self._follow(machine)

    def checkpoint(self) -> DelayedSubmission:
        """What to do when the job is preempted or its time is over: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _lead(self, machine: Machine) -> None:
        from hsplugin.lab.work import perform

        run = Run(self.folder)
        last = -SECONDS_BETWEEN_NEWS

        def notify(event: Mapping[str, Any]) -> None:
            nonlocal last
            if "epoch" not in event or time.monotonic() - last >= SECONDS_BETWEEN_NEWS:
                write_json(run.news, event)
                last = time.monotonic()

        def start() -> None:
            self._send_word(run, train=True)

        event = perform(self.settings, machine, run, notify, start)
        write_json(run.news, event)
        if machine.ranks > 1 and self.settings.method != UNTRAINED:
            if "done" not in event:
                # With this exit status SLURM ends the other ranks too.
                raise SystemExit(1)
            self._send_word(run, train=False)

    def _follow(self, machine: Machine) -> None:
        from hsplugin.lab.train import train

        run = Run(self.folder)
        while (word := self._read_word(run)) is None:
            time.sleep(0.5)
        if not word["train"]:
            return
        while word["resume"] and not run.checkpoint.exists():
            time.sleep(0.5)
        train(self.settings, machine, run, lambda event: None)

    def _send_word(self, run: Run, *, train: bool) -> None:
        if self.machine.ranks > 1:
            content = {"attempt": attempt(), "train": train, "resume": run.checkpoint.exists()}
            write_json(run.word, content)

    def _read_word(self, run: Run) -> dict[str, Any] | None:
        try:
            word = read_json(run.word)
        except (OSError, ValueError):
            return None
        return word if word.get("attempt") == attempt() else None


def attempt() -> str:
    """Names this job, and which start of it this is: a requeued job has the same number."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return ".".join(os.environ.get(name, "0") for name in names)
