"""Tables and pictures of a sweep: sweep.csv, the rank correlations, PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hsplugin.lab.files import markdown_table, write_atomically, write_csv
from hsplugin.lab.run import Run, hyperparameters
from hsplugin.lab.settings import RunSettings
from hsplugin.provenance import describe
from hsplugin.sweep import pictures
from hsplugin.sweep.agreement import Estimate, dominance, estimate, kendall, spearman
from hsplugin.sweep.grid import align_share
from hsplugin.sweep.metrics import METRICS, geometry

Row = dict[str, Any]

FILES = (
    "sweep.csv",
    "agreement.md",
    "agreement.csv",
    "plane.png",
    "weights.png",
    "agreement.png",
)

ACCURACIES = {
    "linear": "linear, test",
    "knn": "kNN, test",
    "validation_linear": "linear, validation",
    "validation_knn": "kNN, validation",
}
NESTED = ("options", "defaults", "provenance")
COLUMNS = (
    *("run", "method", "seed", "align_share", "alpha", "t", "temperature", "dim", "batch_size"),
    *("lr", "epochs", "uniformity_optimum", *METRICS, *ACCURACIES, "seconds"),
    *("data", "train_size", "backbone", *NESTED),
)
STATISTICS = {"spearman": spearman, "kendall": kendall}


def rows_of(out: Path, settings_list: Sequence[RunSettings]) -> list[Row]:
    """One row for each finished encoder, in the order of the settings."""
    rows = []
    for settings in settings_list:
        run = Run.of(settings, out)
        if not run.finished:
            continue
        result = run.read_result()
        trained_with = hyperparameters(result)
        values = {
            **result,
            **trained_with,
            **geometry(run),
            "run": run.name,
            "align_share": align_share(trained_with),
            "align_plus_uniform": result["alignment"] + result["uniformity"],
            **{name: json.dumps(result[name], sort_keys=True) for name in NESTED},
        }
        rows.append({name: values.get(name) for name in COLUMNS})
    return rows


def agreements(rows: Sequence[Row]) -> dict[tuple[str, str, str], Estimate]:
    """Each statistic of each metric with each accuracy, under (metric, accuracy, statistic)."""
    found = {}
    for accuracy in ACCURACIES:
        correct = [row[accuracy] for row in rows]
        for metric in METRICS:
            values = [row[metric] for row in rows]
            for name, statistic in STATISTICS.items():
                found[metric, accuracy, name] = estimate(statistic, values, correct)
        found["lower_left", accuracy, "dominance"] = estimate(
            dominance,
            [row["alignment"] for row in rows],
            [row["uniformity"] for row in rows],
            correct,
        )
    return found


def write(out: Path, settings_list: Sequence[RunSettings], command: Sequence[str]) -> str:
    """Write all tables and pictures of a sweep from its finished encoders.

    Args:
        out: The sweep's folder.
        settings_list: The encoders; others in the folder are left out.
        command: The command line, for the record.

    Returns:
        The tables in Markdown; empty, and nothing written, if no encoder is finished.
    """
    rows = rows_of(out, settings_list)
    if not rows:
        return ""
    write_csv(out / "sweep.csv", rows)
    found = agreements(rows)
    keys = ("metric", "accuracy", "statistic")
    coefficients = [dict(zip(keys, of, strict=True)) | asdict(one) for of, one in found.items()]
    write_csv(out / "agreement.csv", coefficients)
    text = tables(rows, found)
    document = f"{_heading(rows, settings_list)}\n\n{text}\n\n{_record(rows, command)}\n"
    write_atomically(out / "agreement.md", lambda partial: partial.write_text(document))
    for name, picture in (
        ("plane", pictures.plane(rows)),
        ("weights", pictures.weights(rows)),
        ("agreement", pictures.coefficients(found)),
    ):
        for suffix in ("png", "svg"):
            write_atomically(out / f"{name}.{suffix}", picture.savefig)
    return text


def tables(rows: Sequence[Row], found: dict[tuple[str, str, str], Estimate]) -> str:
    """The best encoder of each method, then the coefficients, in Markdown."""
    parts = [_best(rows)]
    for statistic, title in (("spearman", "Spearman's rho"), ("kendall", "Kendall's tau-b")):
        body = [[f"{title} with", "expected sign", *ACCURACIES.values()]]
        for metric, (heading, sign) in METRICS.items():
            cells = [str(found[metric, accuracy, statistic]) for accuracy in ACCURACIES]
            body.append([heading, "-" if sign < 0 else "+", *cells])
        parts.append(markdown_table(body))
    body = [["lower left wins", *ACCURACIES.values()]]
    shares = [found["lower_left", accuracy, "dominance"] for accuracy in ACCURACIES]
    body.append(["share of ordered pairs", *(str(share).replace("+", "") for share in shares)])
    parts.append(markdown_table(body))
    return "\n\n".join(parts)


def in_words(row: Row) -> str:
    """An encoder's hyper-parameters in a few words."""
    named = [
        f"{name} {row[name]:g}"
        for name in ("align_share", "alpha", "t", "temperature", "dim", "batch_size", "lr")
        if row[name] is not None
    ]
    return ", ".join([*named, f"{row['epochs']} epochs"])


def _best(rows: Sequence[Row]) -> str:
    body = [["best on validation (linear)", "encoders", "which", *ACCURACIES.values()]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        best = max(own, key=lambda row: float(row["validation_linear"]))
        body.append(
            [method, str(len(own)), in_words(best), *(f"{best[name]:.1f}" for name in ACCURACIES)]
        )
    return markdown_table(body)


def _heading(rows: Sequence[Row], settings_list: Sequence[RunSettings]) -> str:
    missing = len(settings_list) - len(rows)
    count = f"{len(rows)} encoders" + (f" ({missing} more failed)" if missing else "")
    return f"""# Which metric predicts accuracy: {count} on {rows[0]["data"]}

Metrics are of normalised projections of two views of each validation image (t = 2); accuracy is of
the frozen backbone after the last epoch, in percent. Intervals: 95 %, bootstrap over encoders.
*Expected sign*: the sign that a useful metric would have. *Lower left wins*: among the pairs in
which one encoder is both better aligned and more uniform, how often it is also more accurate (0.5
is chance). Only tolerance uses labels."""


def _record(rows: Sequence[Row], command: Sequence[str]) -> str:
    size = rows[0]["train_size"] or "all"
    seconds = sum(float(row["seconds"]) for row in rows)
    return f"""- Encoders: backbone {rows[0]["backbone"]}, {size} training images,
  seed {rows[0]["seed"]}; training took {seconds / 60:.0f} minutes in all (measuring not counted).
{describe(json.loads(rows[0]["provenance"]), command)}

![alignment-uniformity plane](plane.png)

![accuracy over the weight ratio](weights.png)

![rank correlations](agreement.png)"""
