"""Several files side by side: a row an encoder, a column a metric, differences to the first."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.measure.estimates import Estimate
from hsplugin.measure.geometry import Geometry, Options
from hsplugin.metrics import METRICS, GeometryMetric

LONGEST_NAME = 32
OTHER = "other_"
# Metrics of two sides, which the table of metrics does not list.
BETWEEN = ("uniformity_across", "modality_gap")


@dataclass(frozen=True)
class Entry:
    """One file of a comparison.

    Attributes:
        name: The file's name, short but distinct.
        geometry: What was measured of it.
        metrics: All its estimates; those of another side begin with ``other_``.
        differences: Those minus the first file's, where both are finite; empty for the first file.
    """

    name: str
    geometry: Geometry
    metrics: dict[str, Estimate]
    differences: dict[str, Estimate]


def compare(geometries: list[Geometry], options: Options, sort: str | None = None) -> list[Entry]:
    """Put files side by side.

    If row i of each file is the same sample, the intervals of differences take that into account:
    each group that the jackknife leaves out holds the same rows of both files. They hold for
    independent samples too, as rows are dealt to groups at random.

    Args:
        geometries: What was measured of each file; differences are to the first.
        options: How it was measured.
        sort: The metric by which entries are sorted, the best first, or the least where neither
            end is best; as given without.
    """
    all_metrics = [metrics_of(geometry) for geometry in geometries]
    first = all_metrics[0]
    entries = [
        Entry(
            name,
            geometry,
            metrics,
            {
                metric: estimate.minus(first[metric], options.confidence)
                for metric, estimate in metrics.items()
                if metric in first
                and metrics is not first
                and math.isfinite(estimate.value - first[metric].value)
            },
        )
        for name, geometry, metrics in zip(
            short_names(geometries), geometries, all_metrics, strict=True
        )
    ]
    if sort is None:
        return entries
    sign = -1 if more_is_better(sort) else 1

    def rank(entry: Entry) -> tuple[bool, float]:
        value = entry.metrics[sort].value if sort in entry.metrics else math.nan
        return math.isnan(value), sign * value

    return sorted(entries, key=rank)


def metrics_of(geometry: Geometry) -> dict[str, Estimate]:
    """All estimates of a file, with those of its other side."""
    if geometry.other is None:
        return geometry.metrics
    others = geometry.other.metrics.items()
    return {**geometry.metrics, **{OTHER + name: estimate for name, estimate in others}}


def columns_of(entries: list[Entry]) -> list[str]:
    """Every metric that some file has, in the order of reports."""
    return list(dict.fromkeys(metric for entry in entries for metric in entry.metrics))


def check_metric(name: str) -> None:
    """Refuse what is no metric of a report.

    Raises:
        CommandError: If so.
    """
    known = [
        *(metric + suffix for metric, kind in METRICS.items() for suffix in kind.variants),
        *BETWEEN,
    ]
    if name.removeprefix(OTHER) not in known:
        raise CommandError(unknown("metric", name, known))


def more_is_better(name: str) -> bool:
    """Whether the greatest value of a metric is the best, and not the least."""
    kind = _kind(name)
    return kind is not None and bool(kind.higher_is_better)


def _kind(name: str) -> type[GeometryMetric] | None:
    name = name.removeprefix(OTHER)
    for metric, kind in METRICS.items():
        if name in [metric + suffix for suffix in kind.variants]:
            return kind
    return None


def short_names(geometries: list[Geometry]) -> list[str]:
    """The names without their folders, where these are distinct."""
    names = [geometry.name for geometry in geometries]
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else names


def as_text(entries: list[Entry], options: Options, width: int) -> str:
    """A table of at most ``width`` characters a line; more columns follow below.

    Below each value stand its interval and, but for the first file, the difference to that.
    """
    first = next(entry for entry in entries if not entry.differences)
    lines = [f"{len(entries)} files; below each value {_explanation(first.name, options)}"]
    for entry in entries:
        lines += [f"{_shortened(entry.name)}: {remark}" for remark in entry.geometry.remarks]
    labels: list[str] = []
    for entry in entries:
        rows = f"{_shortened(entry.name)} ({entry.geometry.rows} rows)"
        labels += [rows, *([""] if options.intervals else [])]
        if entry.differences:
            labels += ["  difference", *([""] if options.intervals else [])]
    head = max(len(label) for label in labels) + 2
    columns = [_column(metric, entries, options) for metric in columns_of(entries)]
    while columns:
        used, taken = head, 0
        while taken < len(columns) and (not taken or used + len(columns[taken][0]) <= width):
            used += len(columns[taken][0])
            taken += 1
        lines.append("")
        for place, label in enumerate(["", *labels]):
            cells = "".join(column[place] for column in columns[:taken])
            lines.append(f"{label:<{head}}{cells}".rstrip())
        columns = columns[taken:]
    return "\n".join(lines)


def as_csv(entries: list[Entry]) -> str:
    """A line a file: value, ends of the interval, difference and ends of its interval."""
    columns = columns_of(entries)
    parts = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [metric + part for metric in columns for part in parts]
    writer.writerow(["name", "rows", "zero_rows", "dim", *names])
    for entry in entries:
        geometry = entry.geometry
        cells: list[object] = [geometry.name, geometry.rows, geometry.zero_rows, geometry.dim]
        for metric in columns:
            for estimate in (entry.metrics.get(metric), entry.differences.get(metric)):
                if estimate is None:
                    cells += ["", "", ""]
                else:
                    cells += [estimate.value, *(estimate.interval or ("", ""))]
        writer.writerow(cells)
    return file.getvalue()


def _explanation(first: str, options: Options) -> str:
    difference = f"the difference to {_shortened(first)}"
    if not options.intervals:
        return difference
    return f"its {options.confidence:.0%} interval, and {difference}"


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME + 3 :]}"


def _column(metric: str, entries: list[Entry], options: Options) -> list[str]:
    """The lines of a column, all of one width."""
    cells = [metric]
    for entry in entries:
        shown = [(entry.metrics.get(metric), "")]
        if entry.differences:
            shown.append((entry.differences.get(metric), "+"))
        for estimate, sign in shown:
            cells.append("-" if estimate is None else f"{estimate.value:{sign}.4f}")
            if options.intervals:
                ends = None if estimate is None else estimate.interval
                missing = "" if estimate is None else estimate.missing
                cells.append(f"[{ends[0]:{sign}.4f}, {ends[1]:{sign}.4f}]" if ends else missing)
    width = max(len(cell) for cell in cells) + 2
    return [f"{cell:>{width}}" for cell in cells]
