"""Tables, pictures and the page of a sweep: sweep.csv, the rank correlations, PNG, SVG, HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hsplugin.lab.files import markdown_table, write_atomically, write_csv, write_text
from hsplugin.lab.settings import RunSettings
from hsplugin.provenance import describe
from hsplugin.sweep import page, pictures
from hsplugin.sweep.agreement import (
    STATISTICS,
    Estimate,
    dominance,
    estimate,
    lost,
    lost_at_random,
)
from hsplugin.sweep.encoders import (
    ACCURACIES,
    CHOSEN_BY,
    Row,
    best_of_each_method,
    in_words,
    losses,
    rows_of,
)
from hsplugin.sweep.metrics import METRICS
from hsplugin.sweep.words import BEST, EXPLANATION, LOST, budget, title

FILES = (
    "sweep.csv",
    "agreement.md",
    "agreement.csv",
    "plane.png",
    "weights.png",
    "agreement.png",
    "report.html",
)


def agreements(rows: Sequence[Row]) -> dict[tuple[str, str, str], Estimate]:
    """Each statistic of each metric with each accuracy, under (metric, accuracy, statistic)."""
    found = {}
    for accuracy in ACCURACIES:
        correct = [row[accuracy] for row in rows]
        for metric in METRICS:
            values = [row[metric] for row in rows]
            for name, (_, statistic) in STATISTICS.items():
                found[metric, accuracy, name] = estimate(statistic, values, correct)
        found["lower_left", accuracy, "dominance"] = estimate(
            dominance,
            [row["alignment"] for row in rows],
            [row["uniformity"] for row in rows],
            correct,
        )
    for accuracy, by_labels in CHOSEN_BY.items():
        both = [[row[by_labels] for row in rows], [row[accuracy] for row in rows]]
        for metric, (_, sign) in METRICS.items():
            signed = _last_where_unknown([sign * float(row[metric]) for row in rows])
            found[metric, accuracy, "lost"] = estimate(lost, signed, *both)
        found["random", accuracy, "lost"] = estimate(lost_at_random, *both)
    return found


def _last_where_unknown(values: Sequence[float]) -> list[float]:
    """A metric as a choice: encoders for which it is not defined are chosen last."""
    known = [value for value in values if math.isfinite(value)]
    lowest = min(known, default=math.nan) - 1
    return [value if math.isfinite(value) else lowest for value in values]


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
    missing = len(settings_list) - len(rows)
    document = f"# {title(rows, missing)}\n\n{EXPLANATION}\n\n{text}\n\n{_record(rows, command)}\n"
    write_text(out / "agreement.md", document)
    for name, picture in (
        ("plane", pictures.plane(rows)),
        ("weights", pictures.weights(rows)),
        ("agreement", pictures.coefficients(found)),
    ):
        for suffix in ("png", "svg"):
            write_atomically(out / f"{name}.{suffix}", picture.savefig)
    write_text(out / "report.html", page.page(rows, missing, found, command))
    return text


def tables(rows: Sequence[Row], found: dict[tuple[str, str, str], Estimate]) -> str:
    """The best encoder of each method, then the coefficients, in Markdown."""
    parts = [_best(rows)]
    for statistic, (name, _) in STATISTICS.items():
        body = [[f"{name} with", "expected sign", *ACCURACIES.values()]]
        for metric, (heading, sign) in METRICS.items():
            cells = [str(found[metric, accuracy, statistic]) for accuracy in ACCURACIES]
            body.append([heading, "-" if sign < 0 else "+", *cells])
        parts.append(markdown_table(body))
    body = [["lower left wins", *ACCURACIES.values()]]
    shares = [found["lower_left", accuracy, "dominance"] for accuracy in ACCURACIES]
    body.append(["share of ordered pairs", *(str(share).replace("+", "") for share in shares)])
    parts.append(markdown_table(body))
    body = [[LOST, *(ACCURACIES[name] for name in CHOSEN_BY)]]
    for heading, estimates in losses(found):
        body.append([heading, *map(str, estimates)])
    parts.append(markdown_table(body))
    return "\n\n".join(parts)


def _best(rows: Sequence[Row]) -> str:
    body = [[BEST, "encoders", "which", *ACCURACIES.values()]]
    for best, number in best_of_each_method(rows):
        accuracies = (f"{best[name]:.1f}" for name in ACCURACIES)
        body.append([best["method"], str(number), in_words(best), *accuracies])
    return markdown_table(body)


def _record(rows: Sequence[Row], command: Sequence[str]) -> str:
    return f"""- Encoders: {budget(rows)}
{describe(json.loads(rows[0]["provenance"]), command)}

![alignment-uniformity plane](plane.png)

![accuracy over the weight ratio](weights.png)

![rank correlations](agreement.png)

The same with hover, any two metrics and a table of all encoders: [report.html](report.html)"""
