"""Hyper-parameters chosen on the validation split, among as many candidates of each method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hsplugin.compare.files import markdown_table, read_json, write_csv
from hsplugin.compare.methods import METHODS, UNTRAINED
from hsplugin.compare.progress import Progress, titles
from hsplugin.compare.runs import finished, run_all, run_folder
from hsplugin.compare.settings import Machine, RunSettings

# Seeds of the candidates' runs, others than those of which a comparison reports.
SEEDS = (100, 101)
ACCURACIES = ("validation_knn", "validation_linear")

Row = dict[str, Any]


def tune(
    settings_list: Sequence[RunSettings], out: Path, jobs: int, machine: Machine
) -> tuple[list[RunSettings], str]:
    """Give each method the candidate with the best mean of both accuracies on validation images.

    Candidates are trained with the comparison's budget on seeds of their own, in ``out/tuning``,
    and ``out/tuning.csv`` tells what each came to. A candidate that fails is out of the choice.

    Args:
        settings_list: The runs of the comparison; options given in them are fixed.
        out: The comparison's folder.
        jobs: How many runs at a time.
        machine: Where they run.

    Returns:
        The runs with their options chosen, and a table of the candidates in Markdown.

    Raises:
        CommandError: As `run_all`.
    """
    methods = {s.method: s for s in settings_list if s.method != UNTRAINED}
    tried = {method: _candidates(settings) for method, settings in methods.items()}
    # Where the given options leave one candidate, there is nothing to choose.
    tried = {method: candidates for method, candidates in tried.items() if len(candidates) > 1}
    trials = [run for candidates in tried.values() for runs in candidates.values() for run in runs]
    folder = out / "tuning"
    names = titles(trials)
    progress = Progress(trials, folder, lambda settings: f"tuning {names[settings.name]}")
    run_all(trials, folder, jobs, machine, progress)
    progress.close()
    rows = [
        _row(folder, runs)
        for candidates in tried.values()
        for runs in candidates.values()
        if all(finished(folder, run) for run in runs)
    ]
    best: dict[str, Row] = {}
    for row in rows:
        if row["method"] not in best or row["mean"] > best[row["method"]]["mean"]:
            best[row["method"]] = row
    for row in rows:
        row["chosen"] = row is best[row["method"]]
    write_csv(out / "tuning.csv", [row | {"options": json.dumps(row["options"])} for row in rows])
    chosen = [
        replace(s, options=best[s.method]["options"]) if s.method in best else s
        for s in settings_list
    ]
    return chosen, _table(rows)


def _candidates(settings: RunSettings) -> dict[str, list[RunSettings]]:
    """The runs of each candidate of a method, each candidate once."""
    found = {}
    for candidate in ({}, *METHODS[settings.method].candidates):
        options = {**candidate, **settings.options}
        # What a run comes to at its end is all that counts.
        trial = replace(settings, options=options, validations=1)
        found[json.dumps(options, sort_keys=True)] = [replace(trial, seed=seed) for seed in SEEDS]
    return found


def _row(folder: Path, runs: Sequence[RunSettings]) -> Row:
    results = [read_json(run_folder(folder, run) / "result.json") for run in runs]
    means = {name: fmean(result[name] for result in results) for name in ACCURACIES}
    return {
        "method": runs[0].method,
        "options": dict(runs[0].options),
        **means,
        "mean": fmean(means.values()),
    }


def _table(rows: Sequence[Row]) -> str:
    lines = [["method", "candidate", "kNN %, validation", "linear %, validation", "chosen"]]
    for row in rows:
        options = ", ".join(f"{name} {value:g}" for name, value in row["options"].items())
        accuracies = [f"{row[name]:.1f}" for name in ACCURACIES]
        lines.append(
            [row["method"], options or "defaults", *accuracies, "x" if row["chosen"] else ""]
        )
    seeds = " and ".join(map(str, SEEDS))
    return (
        f"Hyper-parameters were chosen by the mean of both accuracies on the validation split, "
        f"over seeds {seeds}:\n\n{markdown_table(lines)}"
    )
