"""Choose hyper-parameters on the validation split, among as many candidates for each method."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hsplugin.checks import check_number
from hsplugin.compare.groups import options_in_words
from hsplugin.errors import CommandError
from hsplugin.lab.files import markdown_table, write_csv
from hsplugin.lab.methods import METHODS, UNTRAINED
from hsplugin.lab.progress import Progress
from hsplugin.lab.run import Run
from hsplugin.lab.runs import Failure, run_all
from hsplugin.lab.settings import Machine, RunSettings

# Seeds of the candidates' runs, unlike those that comparisons usually report.
SEEDS = (100, 101)
# What candidates are measured by -> heading of the table.
COLUMNS = {"validation_knn": "kNN %, validation", "validation_linear": "linear %, validation"}
CHOICE = f"""\
Hyper-parameters were chosen by the mean of both accuracies on the validation split,
over seeds {" and ".join(map(str, SEEDS))}"""

Row = dict[str, Any]


def tune(
    settings_list: Sequence[RunSettings], out: Path, machine: Machine
) -> tuple[list[RunSettings], list[Failure]]:
    """Give each method the candidate with the best mean of both accuracies on validation images.

    Candidates are trained with the comparison's budget on seeds of their own, in ``out/tuning``,
    and ``out/tuning.csv`` holds the results. A choice in that file is final. A candidate that
    fails cannot be chosen.

    Args:
        settings_list: The runs of the comparison; options given in them are fixed.
        out: The comparison's folder.
        machine: Where they run.

    Returns:
        The runs with their options chosen, and the candidates' runs that failed.

    Raises:
        CommandError: As `run_all`, or if the folder holds a method's runs that were not tuned.
    """
    methods = {s.method: s for s in settings_list if s.method != UNTRAINED}
    tried = {method: _candidates(settings) for method, settings in methods.items()}
    # Where the given options leave one candidate, there is nothing to choose.
    tried = {method: candidates for method, candidates in tried.items() if len(candidates) > 1}
    before = rows_of(out)
    standing = {row["method"]: row["options"] for row in before if row["chosen"]}
    _refuse_untuned(out, set(tried) - set(standing))
    trials = [run for candidates in tried.values() for runs in candidates.values() for run in runs]
    folder = out / "tuning"
    with closing(Progress(trials, folder, "tuning ")) as progress:
        # A tracker shows the runs that are compared, not the candidates.
        failures = run_all(trials, folder, replace(machine, logger=None), progress)
    rows = [row for row in before if row["method"] not in tried]
    for method, candidates in tried.items():
        own = [_row(folder, runs) for runs in candidates.values()]
        best = max(own, key=lambda row: row["mean"] if row["mean"] is not None else -1.0)
        for row in own:
            if row["options"] == standing.get(method):
                best = row
        best["chosen"] = best["mean"] is not None
        rows += own
    if rows:
        write_csv(out / "tuning.csv", [r | {"options": json.dumps(r["options"])} for r in rows])
    chosen = {row["method"]: row["options"] for row in rows if row["chosen"]}
    return [
        replace(s, options=chosen[s.method]) if s.method in tried and s.method in chosen else s
        for s in settings_list
    ], failures


def rows_of(out: Path) -> list[Row]:
    """The candidates that ``out/tuning.csv`` lists; none if there is no such file.

    Raises:
        CommandError: The file is damaged.
    """
    path = out / "tuning.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_read_row(row) for row in csv.DictReader(file, strict=True)]
        if not rows:
            raise ValueError("no candidates")
        return rows
    except FileNotFoundError:
        return []
    except (KeyError, RecursionError, TypeError, ValueError, csv.Error) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CommandError(f"{path} is damaged ({reason}); remove it and rerun --tune") from None


def _read_row(row: Mapping[str, str]) -> Row:
    options = json.loads(row["options"])
    if not isinstance(options, dict):
        raise ValueError(f"options {options!r}")
    for name, value in options.items():
        check_number(name, value)
    if row["chosen"] not in ("True", "False"):
        raise ValueError(f"chosen {row['chosen']!r}")
    accuracies = {n: float(row[n]) if row[n] else None for n in (*COLUMNS, "mean")}
    return {
        "method": row["method"],
        "options": options,
        **accuracies,
        "chosen": row["chosen"] == "True",
    }


def table(rows: Sequence[Row]) -> str:
    """The candidates in Markdown, or nothing."""
    if not rows:
        return ""
    lines = [["method", "candidate", *COLUMNS.values(), "chosen"]]
    for row in rows:
        accuracies = ["failed" if row[n] is None else f"{row[n]:.1f}" for n in COLUMNS]
        options = options_in_words(row["options"]) or "defaults"
        lines.append([row["method"], options, *accuracies, "x" if row["chosen"] else ""])
    return f"{CHOICE}:\n\n{markdown_table(lines)}"


def _candidates(settings: RunSettings) -> dict[str, list[RunSettings]]:
    """The runs of each candidate of a method, each candidate once."""
    found = {}
    for candidate in ({}, *METHODS[settings.method].candidates):
        options = {**candidate, **settings.options}
        # Only the end of a run counts.
        trial = replace(settings, options=options, validations=1)
        found[json.dumps(options, sort_keys=True)] = [replace(trial, seed=seed) for seed in SEEDS]
    return found


def _refuse_untuned(out: Path, methods: set[str]) -> None:
    for run in Run.all_in(out):
        method = run.read_settings()["method"]
        if method in methods:
            raise CommandError(
                f"{out} holds runs of {method} that were not tuned; give another --out"
            )


def _row(folder: Path, runs: Sequence[RunSettings]) -> Row:
    means: Mapping[str, float | None] = dict.fromkeys((*COLUMNS, "mean"))
    finished = [run for run in (Run.of(settings, folder) for settings in runs) if run.finished]
    if len(finished) == len(runs):
        results = [run.read_result() for run in finished]
        accuracies = {name: fmean(result[name] for result in results) for name in COLUMNS}
        means = {**accuracies, "mean": fmean(accuracies.values())}
    return {"method": runs[0].method, "options": dict(runs[0].options), **means, "chosen": False}
