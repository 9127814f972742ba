"""What the user sees while runs go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hsplugin.compare.runs import finished, unique
from hsplugin.compare.settings import RunSettings


class Progress:
    """One line per finished run, and on a terminal one live line for those that run.

    Away from a terminal a running method says something every few seconds instead.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self,
        settings_list: Sequence[RunSettings],
        out: Path,
        title: Callable[[RunSettings], str] = lambda run: f"{run.method} seed {run.seed}",
    ) -> None:
        self.title = title
        runs = unique(settings_list)
        self.total = len(runs)
        self.done = sum(finished(out, settings) for settings in runs)
        self.live: dict[str, str] = {}
        self.terminal = sys.stderr.isatty()
        self._last_line = time.monotonic()
        if self.done:
            self._say(f"{self.done} of {self.total} runs are done already")

    def __call__(self, settings: RunSettings, news: dict[str, Any]) -> None:
        """Show one piece of news of one run."""
        title = self.title(settings)
        if "epoch" in news:
            left = news["seconds"] / news["epoch"] * (news["epochs"] - news["epoch"])
            self.live[title] = (
                f"{title}  epoch {news['epoch']}/{news['epochs']}  loss {news['loss']:.3f}  "
                f"kNN {news['knn']:.1f} %  {news['seconds']:.0f} s, {left:.0f} s left"
            )
            if self.terminal:
                line = "   ".join(self.live.values())
                print(f"\r\033[K[{self.done}/{self.total}] {line}"[:200], end="", file=sys.stderr)
            elif time.monotonic() - self._last_line >= self.SECONDS_BETWEEN_LINES:
                self._say(self.live[title])
            return
        last = self.live.pop(title, title)
        self.done += 1
        self._say(f"{title} failed: {news['failed']}" if "failed" in news else f"done: {last}")

    def _say(self, text: str) -> None:
        start = "\r\033[K" if self.terminal else ""
        print(f"{start}[{self.done}/{self.total}] {text}", file=sys.stderr, flush=True)
        self._last_line = time.monotonic()

    def close(self) -> None:
        """Leave the live line."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def titles(settings_list: Sequence[RunSettings]) -> dict[str, str]:
    """What to call each run while it goes on: all that tells them apart, by their names."""
    columns = ("seed", "dim", "batch_size", "lr", "epochs")
    varying = [name for name in columns if len({getattr(s, name) for s in settings_list}) > 1]
    found = {}
    for settings in settings_list:
        told = {name: getattr(settings, name) for name in varying} | dict(settings.options)
        found[settings.name] = " ".join(
            [settings.method, *(f"{name}={value}" for name, value in told.items())]
        )
    return found
