"""The runs of a comparison in groups, and their numbers: what every form of the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsplugin.compare.uncertainty import among_the_best, difference
from hsplugin.errors import CommandError
from hsplugin.lab.run import ACCURACIES, Run, hyperparameters

Row = dict[str, Any]

# Column of results.csv -> heading of the summary.
SUMMARY = {
    "alignment": "alignment ↓",
    "uniformity": "uniformity ↓",
    "uniformity_optimum": "optimum",
    "knn": "kNN %",
    "linear": "linear %",
    "best_knn": "kNN % (best epoch)",
    "best_linear": "linear % (best epoch)",
    "images_per_second": "images/s",
    "seconds": "seconds",
}
DIGITS = {"alignment": 3, "uniformity": 3, "uniformity_optimum": 3, "images_per_second": 0}
WITHOUT_SPREAD = ("uniformity_optimum", "images_per_second", "seconds")
MARK = "≈"


@dataclass(frozen=True)
class Group:
    """The runs of one line of the summary: one method with the same options, seed by seed.

    ``answers`` holds for each accuracy the share of right answers of each run to each test image,
    ``(seeds, n)``; it is empty if an earlier version, which did not keep them, made a run.
    """

    rows: list[Row]
    answers: dict[str, Tensor]

    @property
    def label(self) -> str:
        """What tables and pictures call the method: its name and the options that were given."""
        method, options = self.rows[0]["method"], options_in_words(self.rows[0]["options"])
        return f"{method} ({options})" if options else str(method)


def options_in_words(options: Mapping[str, Any]) -> str:
    """Hyper-parameters in one line."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def grouped(out: Path, results: Sequence[Row]) -> list[Group]:
    """The finished runs of a folder by method and hyper-parameters, in their order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results:
        trained_with = json.dumps(hyperparameters(row), sort_keys=True)
        groups.setdefault((row["method"], trained_with), []).append(row)
    answers = {row["run"]: Run.of_name(row["run"], out).read_answers() for row in results}
    sizes = {run: len(of_run["knn"]) for run, of_run in answers.items() if of_run}
    if len(set(sizes.values())) > 1:
        few, many = min(sizes, key=lambda run: sizes[run]), max(sizes, key=lambda run: sizes[run])
        raise CommandError(
            f"{out}: {few} was tested on {sizes[few]} images and {many} on {sizes[many]}; remove "
            "the folder of the one that does not belong there and rerun"
        )
    return [
        Group(rows, _stacked([answers[row["run"]] for row in rows])) for rows in groups.values()
    ]


def _stacked(answers: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if not all(answers):
        return {}
    return {name: torch.stack([one[name] for one in answers]) for name in ACCURACIES}


@dataclass(frozen=True)
class Mean:
    """The mean of a column over a group's runs.

    Attributes:
        value: The mean; None where a run has no value.
        digits: Decimals that are shown.
        spread: Standard deviation over seeds; None for one run, or where it tells nothing.
        error: Standard error of an accuracy; None where the answers are unknown.
        best: Whether it cannot be told apart from the best of the column.
    """

    value: float | None
    digits: int
    spread: float | None = None
    error: float | None = None
    best: bool = False

    @property
    def around(self) -> str:
        """What stands behind the mean: spread, error and mark."""
        parts = []
        if self.spread is not None:
            parts.append(f"± {self.spread:.{self.digits}f}")
        if self.error is not None:
            parts.append(f"({self.error:.1f})")
        return " ".join([*parts, MARK] if self.best else parts)

    def __str__(self) -> str:
        if self.value is None:
            return ""
        return f"{self.value:.{self.digits}f} {self.around}".rstrip()


def summary(groups: Sequence[Group]) -> list[dict[str, Mean]]:
    """For each group the mean of every column of `SUMMARY`."""
    known = all(group.answers for group in groups) and len(groups) > 1
    marks = {
        name: among_the_best([group.answers[name] for group in groups]) if known else []
        for name in ACCURACIES
    }
    return [
        {
            column: _mean(group, column, column in ACCURACIES and known and marks[column][place])
            for column in SUMMARY
        }
        for place, group in enumerate(groups)
    ]


def _mean(group: Group, column: str, best: bool) -> Mean:
    values = [row[column] for row in group.rows]
    digits = DIGITS.get(column, 1)
    if None in values:
        return Mean(None, digits)
    spread = len(values) > 1 and column not in WITHOUT_SPREAD
    return Mean(
        float(np.mean(values)),
        digits,
        float(np.std(values, ddof=1)) if spread else None,
        difference(group.answers[column]).error if column in group.answers else None,
        best,
    )


def difference_rows(groups: Sequence[Group]) -> list[Row]:
    """For every accuracy and two groups whose answers are known: difference, error, p-value."""
    rows = []
    for name in ACCURACIES:
        for first, second in combinations(groups, 2):
            if first.answers and second.answers:
                found = difference(first.answers[name], second.answers[name])
                rows.append(
                    {
                        "accuracy": name,
                        "first": first.label,
                        "second": second.label,
                        "difference": found.value,
                        "standard_error": found.error,
                        "p_value": found.p_value(),
                    }
                )
    return rows
