"""Tables and pictures of finished runs: results.csv, history.csv, summary.md, PNG and SVG."""

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

from hsplugin.compare import pictures, tuning
from hsplugin.compare.uncertainty import among_the_best, difference
from hsplugin.errors import CommandError
from hsplugin.lab.files import markdown_table, write_atomically, write_csv
from hsplugin.lab.methods import METHODS, UNTRAINED
from hsplugin.lab.run import ACCURACIES, Run, hyperparameters
from hsplugin.lab.runs import collect
from hsplugin.provenance import describe

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


def write(out: Path, command: Sequence[str]) -> str:
    """Write all tables and pictures of a comparison from its finished runs.

    Args:
        out: The comparison's folder.
        command: The command line, for the record.

    Returns:
        The summary's table in Markdown; empty, and nothing written, if no run is finished.
    """
    results, history = collect(out)
    results.sort(key=_order)
    place = {row["run"]: number for number, row in enumerate(results)}
    history.sort(key=lambda row: (place[row["run"]], row["epoch"]))
    if not results:
        return ""
    # All is read before anything is written.
    groups = grouped(out, results)
    pairs = {g.label: Run.of_name(g.rows[0]["run"], out).read_pairs()[:2] for g in groups}
    tuned = tuning.table(tuning.rows_of(out))
    write_csv(out / "results.csv", [_flat(row) for row in results])
    write_csv(out / "history.csv", history)
    differences = difference_rows(groups)
    if differences:
        write_csv(out / "differences.csv", differences)
    table = summary_table(groups)
    text = _document(groups, table, command, tuned)
    write_atomically(out / "summary.md", lambda partial: partial.write_text(text))
    _pictures(out, groups, pairs)
    return table


def _order(row: Row) -> tuple[int, str, str, int]:
    names = [UNTRAINED, *METHODS]
    position = names.index(row["method"]) if row["method"] in names else len(names)
    return position, row["method"], json.dumps(row["options"], sort_keys=True), row["seed"]


def _flat(row: Row) -> Row:
    nested = ("options", "defaults", "provenance")
    return {**row, **{name: json.dumps(row[name], sort_keys=True) for name in nested}}


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
        """The method and the options that were given."""
        return label(self.rows[0])


def label(row: Row) -> str:
    """What tables and pictures call a run's method: its name and the options that were given."""
    options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
    return f"{row['method']} ({options})" if options else str(row["method"])


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


def summary_table(groups: Sequence[Group]) -> str:
    """Markdown table with a line for each group: mean, spread over seeds, error, and a mark."""
    known = all(group.answers for group in groups) and len(groups) > 1
    marks = {
        name: among_the_best([group.answers[name] for group in groups]) if known else []
        for name in ACCURACIES
    }
    lines = [["method", "seeds", *SUMMARY.values()]]
    for number, group in enumerate(groups):
        cells = [_cell(column, [row[column] for row in group.rows]) for column in SUMMARY]
        for place, column in enumerate(SUMMARY):
            if column in group.answers:
                cells[place] += f" ({difference(group.answers[column]).error:.1f})"
                cells[place] += f" {MARK}" if known and marks[column][number] else ""
        lines.append([group.label, str(len(group.rows)), *cells])
    return markdown_table(lines)


def _cell(column: str, values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    digits = DIGITS.get(column, 1)
    if len(numbers) < 2 or column in WITHOUT_SPREAD:
        return f"{np.mean(numbers):.{digits}f}"
    return f"{np.mean(numbers):.{digits}f} ± {np.std(numbers, ddof=1):.{digits}f}"


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


def _document(groups: Sequence[Group], table: str, command: Sequence[str], tuned: str) -> str:
    first = groups[0].rows[0]
    trained = next((one.rows[0] for one in groups if one.rows[0]["method"] != UNTRAINED), first)
    size = trained["train_size"] or "all"
    per_class = trained["labels_per_class"]
    tuned = f"{tuned}\n\n" if tuned else ""
    labels = f"{per_class} labels per class (mean of fixed draws)" if per_class else "all labels"
    return f"""# Comparison on {first["data"]}

{table}

Mean ± standard deviation over seeds. Alignment and uniformity (t = 2) of normalised projections of
two views of each validation image; *optimum* is the uniformity of perfectly uniform features in
that dimension; *images/s* while training, of one run. Accuracy of the frozen backbone on the
test split with {labels} of the training split, after the last
epoch and after the epoch with the best kNN accuracy on the validation split; no choice looks at
the test split.

{_legend(groups)}{_methods(groups)}

{tuned}- Budget: {trained["epochs"]} epochs, batch {trained["batch_size"]}, {size} training images,
  backbone {trained["backbone"]} ({trained["parameters"] / 1e6:.2f} M parameters),
  precision {trained["precision"]}.
{describe(first["provenance"], command)}

![alignment-uniformity plane](plane.png)

![distances of pairs](histograms.png)
"""


def _legend(groups: Sequence[Group]) -> str:
    """How to read the errors and marks of the table; nothing where the answers are unknown."""
    if not all(group.answers for group in groups):
        return ""
    images = groups[0].answers["knn"].shape[1]
    if all(len(group.rows) > 1 for group in groups):
        scope = "other test images and other seeds"
        sure = "with 95 % confidence the truly best is among them"
    else:
        scope = "other test images, but not other seeds, of which a method here has only one"
        sure = "other seeds may change more than the marks tell"
    return f"""In brackets the standard error of the mean, from {scope}
({images} test images). {MARK} marks the best of a column and what cannot be told apart from it:
{sure}.
The squared standard error of a difference is the variance over images of the difference of mean
answers / n, plus each method's variance over seeds / seeds: paired by image, thus smaller than the
brackets suggest. *differences.csv* has every pair of rows.

"""


def _methods(groups: Sequence[Group]) -> str:
    """What each method is, and the defaults that it was trained with."""
    lines = {}
    for group in groups:
        row = group.rows[0]
        if row["method"] in METHODS:
            defaults = ", ".join(f"{name} {value}" for name, value in row["defaults"].items())
            text = f"- {row['method']}: {METHODS[row['method']].about}"
            lines[row["method"]] = f"{text} ({defaults})." if defaults else f"{text}."
    return "\n".join(lines.values())


def _pictures(
    out: Path, groups: Sequence[Group], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    plane = pictures.plane([{**row, "method": g.label} for g in groups for row in g.rows])
    for suffix in ("png", "svg"):
        write_atomically(out / f"plane.{suffix}", plane.savefig)
    write_atomically(out / "histograms.png", pictures.pair_histograms(pairs).savefig)
