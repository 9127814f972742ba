"""The alignment-uniformity plane for a page: hover, a choice of the colour, paths of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hsplugin.page import figure, shown
from hsplugin.page.controls import Control, Step

SYMBOLS = (
    *("circle", "square", "diamond", "triangle-down", "triangle-up", "pentagon", "star", "cross"),
    *("x", "hexagon", "triangle-right", "triangle-left", "star-square", "bowtie", "hourglass"),
)
HOVER = "%{text}<br>alignment %{x:.3f}, uniformity %{y:.3f}%{customdata}<extra></extra>"
PATH, PLAIN = "#b9c0c8", "#d5d9dd"
Path = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Cloud:
    """The points of one entry of the legend.

    Attributes:
        name: The entry.
        x: Alignment of each point.
        y: Uniformity of each point.
        notes: What the hover says last, for each point.
        texts: What it says first. Both are already escaped.
        paths: Lines below the points, as (alignment, uniformity).
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    notes: Sequence[str]
    texts: Sequence[str]
    paths: Sequence[Path] = field(default=())


@dataclass(frozen=True)
class Colour:
    """What the colour of the points may stand for.

    Attributes:
        label: Its name, for the choice and the colour bar.
        values: For each cloud the value of each point; None draws the cloud grey.
        low: Where the scale of colours begins.
        high: Where it ends.
    """

    label: str
    values: Sequence[Sequence[float] | None]
    low: float
    high: float


def plane(
    clouds: Sequence[Cloud], colours: Sequence[Colour], optima: Iterable[float]
) -> tuple[Any, Control, range]:
    """The figure, the choice of its colours, and the numbers of the traces of the clouds.

    Args:
        clouds: The points.
        colours: The first one is drawn.
        optima: Least values of uniformity, drawn as lines.
    """
    bounds = sorted({round(value, 6) for value in optima})
    paths = [path for cloud in clouds for path in cloud.paths]
    drawn = figure(
        xaxis={
            "title": {"text": "alignment ↓"},
            "range": _range([*(c.x for c in clouds), *(x for x, _ in paths)]),
        },
        yaxis={
            "title": {"text": "uniformity (t = 2) ↓"},
            "range": _range([*(c.y for c in clouds), *(y for _, y in paths), bounds]),
        },
        coloraxis={
            "colorscale": "Viridis",
            "colorbar": {
                "orientation": "h", "thickness": 12, "len": 0.9,
                "x": 0.5, "y": 1.01, "yanchor": "bottom", "title": {"side": "top"},
            },
        },
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
        hoverlabel={"bgcolor": "#fff", "align": "left"},
        showlegend=True,
    )  # fmt: skip
    for value in bounds:
        drawn.add_hline(y=value, line={"color": "#8a929b", "dash": "dash", "width": 1})
    if bounds:
        drawn.add_annotation(
            text="uniform on the sphere" + (", by dimension" if bounds[1:] else ""),
            xref="paper", x=0.995, xanchor="right", y=bounds[-1],
            yanchor="bottom", showarrow=False, font={"size": 11, "color": "#59626d"},
        )  # fmt: skip
    for number, cloud in enumerate(clouds):
        x = [value for path in cloud.paths for value in (*path[0], None)]
        y = [value for path in cloud.paths for value in (*path[1], None)]
        drawn.add_scatter(
            x=x, y=y, mode="lines", line={"color": PATH, "width": 1.2}, hoverinfo="skip",
            legendgroup=str(number), showlegend=False,
        )  # fmt: skip
    markers = range(len(clouds), 2 * len(clouds))
    for number, cloud in enumerate(clouds):
        drawn.add_scatter(
            x=cloud.x, y=cloud.y, mode="markers", name=shown(cloud.name), text=cloud.texts,
            customdata=cloud.notes, hovertemplate=HOVER, legendgroup=str(number),
            marker={
                "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 12,
                "line": {"color": "#1b1f24", "width": 0.8}, "color": PLAIN,
            },
        )  # fmt: skip
    steps = [_step(colour, markers) for colour in colours]
    for trace, changes in steps[0].traces.items():
        drawn.data[trace].marker.update(color=changes["marker.color"], coloraxis="coloraxis")
    drawn.update_layout({name.replace(".", "_"): v for name, v in steps[0].layout.items()})
    return drawn, Control("colour", steps), markers


def _step(colour: Colour, markers: range) -> Step:
    return Step(
        colour.label,
        {
            trace: {"marker.color": values}
            for trace, values in zip(markers, colour.values, strict=True)
            if values is not None
        },
        {
            "coloraxis.colorbar.title.text": colour.label,
            "coloraxis.cmin": colour.low,
            "coloraxis.cmax": colour.high if colour.high > colour.low else colour.low + 1,
        },
    )


def _range(columns: Iterable[Sequence[float | None]]) -> list[float] | None:
    """The ends of an axis with some space, the same whatever is shown of the columns."""
    known = [v for values in columns for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    space = 0.06 * (max(known) - min(known)) or 0.1
    return [min(known) - space, max(known) + space]
