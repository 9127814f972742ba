"""The measured geometry as a page: tables, spectra, distances and a sphere to turn."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from hsplugin import provenance
from hsplugin.measure.comparison import Entry, columns_of
from hsplugin.measure.estimates import Estimate
from hsplugin.measure.geometry import DISTANCE_BINS, Geometry, Options
from hsplugin.page import COLOURS, Cell, Page, figure, shown
from hsplugin.page.controls import Control, Step

MOST_LISTED = 10
# Points of one side, so that ten files make a page of some megabytes.
MOST_POINTS = 1000
PACKAGES = ("hsplugin", "torch", "torchmetrics", "numpy", "scipy", "pyarrow", "plotly")


def page(entries: list[Entry], options: Options) -> str:
    """A self-contained page of one or several files.

    Raises:
        ImportError: If plotly is missing.
    """
    made = Page("Geometry of embeddings")
    rows = ", ".join(sorted({str(entry.geometry.rows) for entry in entries}, key=int))
    made.text(
        f"{_counted(len(entries), 'file')} of {rows} rows; alpha = {options.alpha:g}, "
        f"t = {options.t:g}; features "
        + ("scaled to unit length for metrics on the sphere." if options.normalize else "as is.")
    )
    for entry in entries:
        for remark in entry.geometry.remarks:
            made.text(f"{entry.name}: {remark}.")
    made.heading("Metrics")
    if options.intervals:
        made.text(f"Below a value: its {options.confidence:.0%} confidence interval.")
    if len(entries) == 1:
        _metrics_of_one(made, entries[0])
    else:
        _metrics_of_all(made, entries)
    made.heading("Where the features lie")
    made.text("Drag to turn the sphere; click on a name in the legend to hide or show its points.")
    drawn, files = _spheres(entries, options)
    made.controlled(drawn, files, height=620)
    made.heading("Distances and spectra")
    made.figures(*_distances(entries, options), _spectra(entries))
    _classes(made, entries)
    made.heading("How this was made")
    facts = provenance.machine_facts(PACKAGES)
    made.facts(provenance.in_words(facts, ["hsplugin", *sys.argv[1:]]))
    return made.html()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _metrics_of_one(made: Page, entry: Entry) -> None:
    rows = [
        [name, _with_interval(estimate), estimate.note] for name, estimate in entry.metrics.items()
    ]
    made.table(["metric", entry.name, "how to read it"], rows)


def _metrics_of_all(made: Page, entries: list[Entry]) -> None:
    columns = columns_of(entries)
    made.table(
        ["file", "rows", "dimensions", *columns],
        [
            [entry.name, entry.geometry.rows, entry.geometry.dim]
            + [_with_interval(entry.metrics.get(name)) for name in columns]
            for entry in entries
        ],
    )
    first = next(entry for entry in entries if not entry.differences)
    made.heading(f"Differences to {first.name}")
    made.table(
        ["file", *columns],
        [
            [entry.name, *(_with_interval(entry.differences.get(name)) for name in columns)]
            for entry in entries
            if entry is not first
        ],
    )


def _with_interval(estimate: Estimate | None) -> Any:
    if estimate is None:
        return None
    ends = estimate.interval
    return Cell(estimate.value, f"[{ends[0]:.4f}, {ends[1]:.4f}]" if ends else estimate.missing)


def _sides(entries: list[Entry]) -> list[tuple[str, Geometry]]:
    """Each side of each file with its name."""
    found = []
    for entry in entries:
        found.append((entry.name, entry.geometry))
        if entry.geometry.other is not None:
            found.append((entry.geometry.other.name, entry.geometry.other))
    return found


def _distances(entries: list[Entry], options: Options) -> list[Any]:
    """Histograms of the distances of positive pairs, if there are any, and of all pairs."""
    paired = [entry for entry in entries if entry.geometry.distances is not None]
    width = 2 / DISTANCE_BINS
    middles = [width * (place + 0.5) for place in range(DISTANCE_BINS)]
    made = []
    for title, counts in (
        ("Positive pairs", [(e.name, e.geometry.distances) for e in paired]),
        ("All pairs of a sample", [(n, _all_distances(g)) for n, g in _sides(entries)]),
    ):
        if not any(numbers.any() for _, numbers in counts if numbers is not None):
            continue
        drawn = figure(
            title=title if options.normalize else f"{title} nearer than 2",
            xaxis_title="distance",
            yaxis_title="density",
            barmode="overlay",
            bargap=0,
            showlegend=len(counts) > 1,
            xaxis_range=[0, 2],
        )
        for name, numbers in counts:
            assert numbers is not None
            density = numbers / numbers.sum().clamp(min=1) / width
            drawn.add_bar(
                x=middles, y=_rounded(density), name=shown(name), opacity=0.55, width=width
            )
        made.append(drawn)
    return made


def _all_distances(geometry: Geometry) -> Tensor:
    lengths = torch.nn.functional.pdist(geometry.sample[:MOST_POINTS].float())
    return torch.histc(lengths, DISTANCE_BINS, 0, 2)


def _spectra(entries: list[Entry]) -> Any:
    sides = _sides(entries)
    drawn = figure(
        title="Spectrum of the covariance",
        xaxis={"title": {"text": "index"}, "type": "log", "dtick": 1},
        yaxis={"title": {"text": "eigenvalue"}, "type": "log", "exponentformat": "power"},
        showlegend=len(sides) > 1,
    )
    for name, geometry in sides:
        values = geometry.spectrum[geometry.spectrum > 0]
        index = list(range(1, len(values) + 1))
        drawn.add_scatter(x=index, y=_rounded(values), mode="lines", name=shown(name))
    return drawn


def _spheres(entries: list[Entry], options: Options) -> tuple[Any, Control]:
    """Samples in their first three principal directions, and the choice of the file."""
    ends = [-1.05, 1.05] if options.normalize else None
    drawn = figure(
        scene={
            **{
                f"{axis}axis": {"title": {"text": f"direction {number}"}, "range": ends}
                for number, axis in enumerate("xyz", start=1)
            },
            "aspectmode": "cube",
        },
        margin={"l": 0, "r": 0, "t": 50, "b": 0},
        legend={"itemsizing": "constant", "x": 1, "xanchor": "right"},
        showlegend=True,
    )
    if options.normalize:
        for line in _outline():
            drawn.add_scatter3d(
                x=line[0], y=line[1], z=line[2], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": "#c9ced4", "width": 1.5},
            )  # fmt: skip
    owners: dict[int, int] = {}
    titles = []
    for place, entry in enumerate(entries):
        clouds, share = _clouds(entry.geometry)
        for number, (name, points) in enumerate(clouds):
            owners[len(drawn.data)] = place
            drawn.add_scatter3d(
                **dict(zip("xyz", map(_rounded, points.T), strict=True)), mode="markers",
                name=shown(name), visible=place == 0, hoverinfo="name",
                marker={"size": 2.5, "opacity": 0.8, "color": COLOURS[number % len(COLOURS)]},
            )  # fmt: skip
        percent = ", ".join(f"{part:.0%}" for part in share)
        titles.append(f"{shown(entry.name)}: principal directions 1 to 3, {percent} of variance")
    drawn.update_layout(title=titles[0])
    steps = [
        Step(
            entry.name,
            {trace: {"visible": owner == place} for trace, owner in owners.items()},
            {"title.text": titles[place]},
        )
        for place, entry in enumerate(entries)
    ]
    return drawn, Control("file", steps)


def _clouds(geometry: Geometry) -> tuple[list[tuple[str, Tensor]], list[float]]:
    """Points (n, 3) by class, or by side if there are two; shares of variance of the directions."""
    sides = [geometry] if geometry.other is None else [geometry, geometry.other]
    samples = [side.sample[:MOST_POINTS].double() for side in sides]
    rows = torch.cat(samples)
    _, lengths, directions = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    squares = lengths.square()
    share = squares[:3] / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    flat = 3 - min(3, len(directions))
    seen = [
        torch.nn.functional.pad(sample @ directions[:3].T, (0, flat)).float() for sample in samples
    ]
    if len(sides) == 2:
        return [
            (side.name, points) for side, points in zip(sides, seen, strict=True)
        ], share.tolist()
    points = seen[0]
    if not geometry.classes:
        return [(f"sample of {len(points)} rows", points)], share.tolist()
    classes = geometry.sample_classes[: len(points)]
    listed = list(range(min(len(geometry.classes), MOST_LISTED)))
    clouds = [(geometry.classes[number], points[classes == number]) for number in listed]
    if len(geometry.classes) > len(listed):
        clouds.append((_counted(len(geometry.classes) - len(listed), "other class"),
                       points[classes >= len(listed)]))  # fmt: skip
    return clouds, share.tolist()


def _outline() -> list[tuple[list[float], list[float], list[float]]]:
    """Three great circles and two parallels of the unit sphere."""
    angle = torch.linspace(0, 2 * torch.pi, 73)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    lines = [(cos, sin, zero), (cos, zero, sin), (zero, cos, sin)]
    lines += [(cos * 0.75**0.5, sin * 0.75**0.5, zero + height) for height in (-0.5, 0.5)]
    return [(_rounded(x), _rounded(y), _rounded(z)) for x, y, z in lines]


def _classes(made: Page, entries: list[Entry]) -> None:
    """Uniformity of each class, a column a file."""
    labelled = [entry for entry in entries if entry.geometry.classes]
    if not labelled:
        return
    found = [
        {e.geometry.classes[n]: value for n, value in e.geometry.uniformity.per_class.items()}
        for e in labelled
    ]
    names = list(dict.fromkeys(name for values in found for name in values))
    made.heading("Uniformity within each class")
    made.table(
        ["class", *(entry.name for entry in labelled)],
        [[name, *(values.get(name) for values in found)] for name in names],
    )


def _rounded(values: Tensor) -> list[float]:
    """Four digits are enough to draw."""
    return [float(f"{value:.4g}") for value in values.tolist()]
