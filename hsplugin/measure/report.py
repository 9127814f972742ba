"""The measured geometry as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsplugin import plots
from hsplugin.measure.comparison import compare
from hsplugin.measure.estimates import Estimate
from hsplugin.measure.geometry import Geometry, Options

MOST_CLASSES_SHOWN = 12


def table(geometry: Geometry, options: Options) -> str:
    """The metrics of one array, one line each."""
    report = geometry.uniformity
    lines = [f"{geometry.name}: {geometry.rows} rows, {geometry.dim} dimensions"]
    if geometry.zero_rows:
        lines[0] += f", {geometry.zero_rows} rows are zero"
    lines += [f"  {remark}" for remark in geometry.remarks]
    heading = f"{options.confidence:.0%} interval" if options.intervals else ""
    lines.append(f"  {'metric':<24}{'value':>10}  {heading:<22}")
    for metric, estimate in geometry.metrics.items():
        interval = estimate.interval
        spread = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else estimate.missing
        lines.append(
            f"  {metric:<24}{estimate.value:>10.4f}  {spread:<22}  {estimate.note}".rstrip()
        )
    for number, value in list(report.per_class.items())[:MOST_CLASSES_SHOWN]:
        label = f"uniformity[{geometry.classes[number]}]"
        gap = f"gap {value - report.optimum:.4f}"
        lines.append(f"  {label:<24}{value:>10.4f}  {'':<22}  {gap}")
    if len(report.per_class) > MOST_CLASSES_SHOWN:
        more = len(report.per_class) - MOST_CLASSES_SHOWN
        lines.append(f"  and {more} more classes; --json lists all")
    if geometry.other is not None:
        lines.append(table(geometry.other, options))
    return "\n".join(lines)


def as_json(geometries: list[Geometry], options: Options) -> str:
    """All numbers; NaN and infinity become null."""
    files = [_content(geometry) for geometry in geometries]
    for content, entry in zip(files, compare(geometries, options), strict=True):
        if entry.differences:
            content["difference_to_first"] = _numbers(entry.differences)
    settings = {
        "alpha": options.alpha,
        "t": options.t,
        "normalize": options.normalize,
        "max_samples": options.max_samples,
        "confidence": options.confidence,
        "interval": "grouped jackknife" if options.intervals else None,
    }
    return json.dumps({"options": settings, "files": files}, indent=2, allow_nan=False)


def _content(geometry: Geometry) -> dict[str, Any]:
    report = geometry.uniformity
    content = {
        "name": geometry.name,
        "rows": geometry.rows,
        "zero_rows": geometry.zero_rows,
        "dim": geometry.dim,
        "metrics": _numbers(geometry.metrics),
        "uniformity": {
            "optimum": report.optimum,
            "gap": _number(report.gap),
            "kept": report.kept,
            "per_class": {
                geometry.classes[place]: _number(value) for place, value in report.per_class.items()
            },
        },
        "covariance_spectrum": [_number(value) for value in geometry.spectrum.tolist()],
    }
    if geometry.remarks:
        content["remarks"] = list(geometry.remarks)
    if geometry.other is not None:
        content["other"] = _content(geometry.other)
    return content


def _numbers(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        name: {
            "value": _number(estimate.value),
            "interval": estimate.interval,
            "unbiased": estimate.unbiased,
        }
        for name, estimate in estimates.items()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def picture(geometries: list[Geometry], path: Path) -> None:
    """Draw each array's features, all spectra, and all distances of positive pairs.

    Raises:
        ImportError: If matplotlib is missing.
    """
    paired = [geometry for geometry in geometries if geometry.distances is not None]
    made, axes = plots.figure(len(geometries) + 1 + bool(paired))
    for panel, geometry in zip(axes, geometries, strict=False):
        labels = geometry.sample_classes if geometry.classes else None
        if geometry.dim == 2:
            plots.features_on_circle(panel, geometry.sample, labels)
        elif geometry.dim > 2:
            plots.principal_plane(panel, geometry.sample, labels)
        panel.set_title(f"{Path(geometry.name).name}, d = {geometry.dim}")
    spectra = axes[len(geometries)]
    for geometry in geometries:
        values = geometry.spectrum[geometry.spectrum > 0]
        spectra.plot(range(1, len(values) + 1), values.numpy(), label=Path(geometry.name).name)
    spectra.set(xlabel="index", ylabel="eigenvalue of the covariance")
    if any((geometry.spectrum > 0).any() for geometry in geometries):
        spectra.set(xscale="log", yscale="log")
    spectra.legend(fontsize=7)
    for geometry in paired:
        assert geometry.distances is not None
        width = 2 / len(geometry.distances)
        edges = [place * width for place in range(len(geometry.distances) + 1)]
        density = geometry.distances / geometry.distances.sum().clamp(min=1) / width
        name = Path(geometry.name).name
        axes[-1].stairs(density.numpy(), edges, fill=True, alpha=0.5, label=name)
        axes[-1].set(xlim=(0, 2), xlabel="distance of positive pairs")
    made.savefig(path, dpi=150)
