"""The finished encoders of a sweep: a row each, each in words, the best of each method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.lab.run import Run, hyperparameters
from hsplugin.lab.settings import RunSettings
from hsplugin.sweep.agreement import Estimate
from hsplugin.sweep.grid import align_share
from hsplugin.sweep.metrics import METRICS, geometry

Row = dict[str, Any]

ACCURACIES = {
    "linear": "linear, test",
    "knn": "kNN, test",
    "validation_linear": "linear, validation",
    "validation_knn": "kNN, validation",
}
# Test accuracy -> the accuracy by which labels choose an encoder.
CHOSEN_BY = {"linear": "validation_linear", "knn": "validation_knn"}
NESTED = ("options", "defaults", "provenance")
# What a sweep usually varies; None where a method does not have it.
VARIED = ("align_share", "alpha", "t", "temperature", "dim", "batch_size", "lr")
COLUMNS = (
    *("run", "method", "seed", *VARIED, "epochs"),
    *("uniformity_optimum", *METRICS, *ACCURACIES, "seconds"),
    *("data", "train_size", "backbone", *NESTED),
)


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
            **geometry(run),
            **result,
            **trained_with,
            "run": run.name,
            "align_share": align_share(trained_with),
            "align_plus_uniform": result["alignment"] + result["uniformity"],
            **{name: json.dumps(result[name], sort_keys=True) for name in NESTED},
        }
        rows.append({name: values.get(name) for name in COLUMNS})
    return rows


def losses(
    found: Mapping[tuple[str, str, str], Estimate],
) -> list[tuple[str, list[Estimate]]]:
    """What is lost by each way to choose, the least in linear accuracy first, with its heading."""
    headings = {**{name: heading for name, (heading, _) in METRICS.items()}, "random": "chance"}
    table = [
        (heading, [found[name, accuracy, "lost"] for accuracy in CHOSEN_BY])
        for name, heading in headings.items()
    ]
    return sorted(table, key=lambda line: (np.isnan(line[1][0].value), line[1][0].value))


def in_words(row: Row) -> str:
    """An encoder's hyper-parameters in a few words."""
    named = [f"{name} {row[name]:g}" for name in VARIED if row[name] is not None]
    return ", ".join([*named, f"{row['epochs']} epochs"])


def best_of_each_method(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Of each method the encoder with the best linear accuracy on validation, among how many."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        found.append((max(own, key=lambda row: float(row["validation_linear"])), len(own)))
    return found
