"""What the user sees while runs go on, and of those that failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hsplugin.lab.run import Run
from hsplugin.lab.runs import Failure, unique
from hsplugin.lab.settings import RunSettings


class Progress:
    """One line per finished run, and on a terminal one live line for the runs in progress.

    Away from a terminal, a line every ten seconds tells how far a run is.

    Args:
        settings_list: The runs.
        out: Their folder.
        prefix: Put before the title of each run.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, settings_list: Sequence[RunSettings], out: Path, prefix: str = "") -> None:
        runs = unique(settings_list)
        self.titles = {name: f"{prefix}{title}" for name, title in titles(runs).items()}
        self.live: dict[str, str] = {}
        done = sum(Run.of(settings, out).finished for settings in runs)
        # disable=None: no live line unless stderr is a terminal.
        self.bar = tqdm(
            total=len(runs),
            initial=done,
            bar_format="[{n_fmt}/{total_fmt}] {desc}",
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )
        self.done, self.total = done, len(runs)
        self._last_line = time.monotonic()
        if done:
            self._say(f"{done} of {self.total} runs are done already")

    def __call__(self, settings: RunSettings, event: dict[str, Any]) -> None:
        """Show one event of one run."""
        title = self.titles[settings.name]
        if "note" in event:
            self._say(f"{title}: {event['note']}")
            return
        if "epoch" in event:
            left = event["seconds"] / event["epoch"] * (event["epochs"] - event["epoch"])
            self.live[settings.name] = (
                f"{title}  epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.3f}  "
                f"kNN {event['knn']:.1f} %  {event['seconds']:.0f} s, {left:.0f} s left"
            )
            self.bar.set_description_str("   ".join(self.live.values()))
            overdue = time.monotonic() - self._last_line >= self.SECONDS_BETWEEN_LINES
            if self.bar.disable and overdue:
                self._say(self.live[settings.name])
            return
        last = self.live.pop(settings.name, title)
        self.bar.set_description_str("   ".join(self.live.values()), refresh=False)
        self.done += 1
        self.bar.update()
        self._say(f"{title} failed: {event['failed']}" if "failed" in event else f"done: {last}")

    def _say(self, text: str) -> None:
        tqdm.write(f"[{self.done}/{self.total}] {text}", file=sys.stderr)
        self._last_line = time.monotonic()

    def close(self) -> None:
        """Remove the live line."""
        self.bar.close()


def titles(settings_list: Sequence[RunSettings]) -> dict[str, str]:
    """A short title for each run, by its name: all that differs between the runs."""
    columns = ("seed", "dim", "batch_size", "lr", "epochs")
    varying = [name for name in columns if len({getattr(s, name) for s in settings_list}) > 1]
    found = {}
    for settings in settings_list:
        told = {name: getattr(settings, name) for name in varying} | dict(settings.options)
        found[settings.name] = " ".join(
            [settings.method, *(f"{name}={value}" for name, value in told.items())]
        )
    return found


def exit_status(command: str, out: Path, failures: Sequence[Failure]) -> int:
    """Print one line per failed run, with its log; 0 if there is none, else 1."""
    for failure in failures:
        # A run that was killed leaves no log; a candidate's is in the folder of the tuning.
        name = failure.settings.name
        places = (Run.of(failure.settings, folder) for folder in (out, out / "tuning"))
        log = next((run.error_log for run in places if run.error_log.exists()), None)
        see = f" (see {log})" if log else ""
        print(f"hsplugin {command}: {name} failed: {failure.reason}{see}", file=sys.stderr)
    return 1 if failures else 0
