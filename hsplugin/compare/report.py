"""Tables and pictures of finished runs: results.csv, history.csv, summary.md, PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hsplugin.compare import pictures, tuning
from hsplugin.lab.files import markdown_table, write_atomically, write_csv
from hsplugin.lab.methods import METHODS, UNTRAINED
from hsplugin.lab.run import Run, hyperparameters
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
    "seconds": "seconds",
}


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
    history.sort(key=lambda row: (*_order(row), row["epoch"]))
    if not results:
        return ""
    write_csv(out / "results.csv", [_flat(row) for row in results])
    write_csv(out / "history.csv", history)
    table = summary_table(results)
    text = _document(results, table, command, tuning.table(tuning.rows_of(out)))
    write_atomically(out / "summary.md", lambda partial: partial.write_text(text))
    _pictures(out, results)
    return table


def _order(row: Row) -> tuple[int, str, int, str]:
    names = [UNTRAINED, *METHODS]
    position = names.index(row["method"]) if row["method"] in names else len(names)
    return position, row["method"], row["seed"], row["run"]


def _flat(row: Row) -> Row:
    nested = ("options", "defaults", "provenance")
    return {**row, **{name: json.dumps(row[name], sort_keys=True) for name in nested}}


def summary_table(results: Sequence[Row]) -> str:
    """Markdown table with one line per method and hyper-parameters: mean (and spread) of seeds."""
    table = pd.DataFrame(results)
    table["trained_with"] = [json.dumps(hyperparameters(r), sort_keys=True) for r in results]
    lines = [["method", "seeds", *SUMMARY.values()]]
    for (method, _), group in table.groupby(["method", "trained_with"], sort=False):
        columns = group[list(SUMMARY)]
        mean, spread = columns.mean(skipna=False), columns.std(skipna=False)
        cells = [_cell(column, mean[column], spread[column], len(group)) for column in SUMMARY]
        lines.append([method, str(len(group)), *cells])
    return markdown_table(lines)


def _cell(column: str, mean: float, spread: float, runs: int) -> str:
    digits = 3 if column in ("alignment", "uniformity", "uniformity_optimum") else 1
    if runs < 2 or column in ("uniformity_optimum", "seconds"):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _document(results: Sequence[Row], table: str, command: Sequence[str], tuned: str) -> str:
    first = results[0]
    trained = next((row for row in results if row["method"] != UNTRAINED), first)
    size = trained["train_size"] or "all"
    per_class = trained["labels_per_class"]
    tuned = f"{tuned}\n\n" if tuned else ""
    labels = f"{per_class} labels per class (mean of fixed draws)" if per_class else "all labels"
    return f"""# Comparison on {first["data"]}

{table}

Mean ± standard deviation over seeds. Alignment and uniformity (t = 2) of normalised projections of
two views of each validation image; *optimum* is the uniformity of perfectly uniform features in
that dimension. Accuracy of the frozen backbone on the test split
with {labels} of the training split, after the last epoch and after
the epoch with the best kNN accuracy on the validation split; no choice looks at the test split.

{tuned}- Budget: {trained["epochs"]} epochs, batch {trained["batch_size"]}, {size} training images,
  backbone {trained["backbone"]} ({trained["parameters"] / 1e6:.2f} M parameters).
{describe(first["provenance"], command)}

![alignment-uniformity plane](plane.png)

![distances of pairs](histograms.png)
"""


def _pictures(out: Path, results: Sequence[Row]) -> None:
    plane = pictures.plane(results)
    for suffix in ("png", "svg"):
        write_atomically(out / f"plane.{suffix}", plane.savefig)
    pairs = {}
    for row in results:
        if row["method"] not in pairs:
            kept = Run(out / "runs" / row["run"]).pairs
            pairs[row["method"]] = torch.load(kept, weights_only=True)
    histograms = pictures.pair_histograms(
        {m: (p["a"].float(), p["b"].float()) for m, p in pairs.items()}
    )
    write_atomically(out / "histograms.png", histograms.savefig)
