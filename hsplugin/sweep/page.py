"""A sweep as a page: any metrics beside accuracy, the plane, the coefficients, all encoders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hsplugin.page import Cell, Page, figure, shown
from hsplugin.page.controls import Control, Step
from hsplugin.page.plane import SYMBOLS, Cloud, Colour, plane
from hsplugin.provenance import in_words as machine_in_words
from hsplugin.sweep.agreement import STATISTICS, Estimate
from hsplugin.sweep.encoders import (
    ACCURACIES,
    CHOSEN_BY,
    VARIED,
    Row,
    best_of_each_method,
    in_words,
    losses,
)
from hsplugin.sweep.metrics import METRICS
from hsplugin.sweep.pictures import PROBES, colour_ends, in_expected_direction, with_arrow
from hsplugin.sweep.words import BEST, EXPLANATION, LOST, budget, title

Found = Mapping[tuple[str, str, str], Estimate]
# What the matrix shows until the reader chooses: more panels would be too small to read.
MATRIX = ("alignment", "uniformity", "rankme", "lidar", "linear")


def page(rows: Sequence[Row], missing: int, found: Found, command: Sequence[str]) -> str:
    """A self-contained page.

    Args:
        rows: The finished encoders.
        missing: How many others failed.
        found: The coefficients, as `agreements` gives them.
        command: The command line, for the record.

    Raises:
        ImportError: If plotly is missing.
    """
    made = Page(title(rows, missing))
    made.text(EXPLANATION.replace("*", ""))  # of Markdown
    made.table(
        [BEST, "encoders", "which", *ACCURACIES.values()],
        [
            [best["method"], number, in_words(best)]
            + [Cell(best[name], digits=1) for name in ACCURACIES]
            for best, number in best_of_each_method(rows)
        ],
    )
    made.heading("The plane")
    made.text("Each point is an encoder. Lower left is better.")
    drawn, colour = _plane(rows)
    made.controlled(drawn, colour, height=620)
    made.heading("Metrics beside each other")
    made.text("The lists choose the metrics, from left to right and from top to bottom.")
    drawn, slots, data = _matrix(rows)
    made.controlled(drawn, *slots, data=data, height=680, least_width=560)
    made.heading("Rank correlations with accuracy")
    made.text("To the right of zero: in the expected direction.")
    drawn, statistic = _coefficients(found)
    made.controlled(drawn, statistic, height=100 + 34 * len(METRICS), least_width=520)
    for name, (heading, _) in STATISTICS.items():
        made.table(
            [f"{heading} with", "expected sign", *ACCURACIES.values()],
            [
                [metric_title, "-" if sign < 0 else "+"]
                + [_with_interval(found[metric, accuracy, name]) for accuracy in ACCURACIES]
                for metric, (metric_title, sign) in METRICS.items()
            ],
        )
    made.table(
        ["lower left wins", *ACCURACIES.values()],
        [
            ["share of ordered pairs"]
            + [_with_interval(found["lower_left", name, "dominance"]) for name in ACCURACIES]
        ],
    )
    made.heading("Choosing an encoder without labels")
    made.text("Points of accuracy lost beside the choice by labels on validation images.")
    made.table(
        [LOST, *(ACCURACIES[name] for name in CHOSEN_BY)],
        [[heading, *map(_with_interval, estimates)] for heading, estimates in losses(found)],
    )
    made.heading("Encoders")
    made.table(
        [
            *("method", *VARIED, "epochs", "seed", *ACCURACIES.values()),
            *(*map(with_arrow, METRICS), "seconds", "folder"),
        ],
        [
            [row["method"], *(_plain(row[name]) for name in VARIED), row["epochs"], row["seed"]]
            + [Cell(row[name], digits=1) for name in ACCURACIES]
            + [row[name] for name in METRICS]
            + [Cell(row["seconds"], digits=1), f"runs/{row['run']}"]
            for row in rows
        ],
    )
    made.heading("How this was made")
    seeds = sorted({row["seed"] for row in rows})
    made.facts(
        [
            ("Encoders", budget(rows)),
            ("Seeds", ", ".join(map(str, seeds))),
            *machine_in_words(json.loads(rows[0]["provenance"]), command),
        ]
    )
    return made.html()


def _with_interval(one: Estimate) -> Cell:
    known = math.isfinite(one.low)
    return Cell(one.value, f"[{one.low:.2f}, {one.high:.2f}]" if known else "", digits=2)


def _plain(value: float | None) -> Cell:
    """A hyper-parameter with the decimals that it has."""
    decimals = 0 if value is None else len(f"{value:.12f}".rstrip("0").partition(".")[2])
    return Cell(value, digits=decimals)


def _hover(row: Row) -> str:
    """An encoder in words, a few on each line."""
    parts = in_words(row).split(", ")
    lines = [", ".join(parts[start : start + 3]) for start in range(0, len(parts), 3)]
    accuracies = f"linear {row['linear']:.1f} %, kNN {row['knn']:.1f} % on test images"
    return "<br>".join([f"<b>{shown(row['method'])}</b>", *map(shown, lines), accuracies])


def _plane(rows: Sequence[Row]) -> tuple[Any, Control]:
    groups = {
        method: [row for row in rows if row["method"] == method]
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    clouds = [
        Cloud(
            method,
            x=[row["alignment"] for row in own],
            y=[row["uniformity"] for row in own],
            notes=[""] * len(own),
            texts=list(map(_hover, own)),
        )
        for method, own in groups.items()
    ]
    colours = [
        Colour(
            f"{heading}, %",
            [[row[name] for row in own] for own in groups.values()],
            *colour_ends(rows, name),
        )
        for name, heading in ACCURACIES.items()
    ]
    drawn, colour, _ = plane(clouds, colours, (row["uniformity_optimum"] for row in rows))
    return drawn, colour


def _matrix(rows: Sequence[Row]) -> tuple[Any, list[Control], dict[str, list[float]]]:
    """Scatter plots of each two of a few columns, a choice for each of these, and all columns.

    Plotly's own matrix draws by code that it makes from text, which the page forbids.
    """
    from plotly.subplots import make_subplots

    size = len(MATRIX) - 1
    headings = {**{name: METRICS[name][0] for name in METRICS}, **ACCURACIES}
    data = {name: [row[name] for row in rows] for name in headings}
    cells = [(row, column) for row in range(1, size + 1) for column in range(row)]
    drawn = make_subplots(
        size, size, shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.02, vertical_spacing=0.02,
        specs=[[{} if column <= row else None for column in range(size)] for row in range(size)],
        figure=figure(),
    )  # fmt: skip
    methods = list(dict.fromkeys(row["method"] for row in rows))
    symbols = [SYMBOLS[methods.index(row["method"]) % len(SYMBOLS)] for row in rows]
    texts = list(map(_hover, rows))
    for row, column in cells:
        drawn.add_scatter(
            x=data[MATRIX[column]], y=data[MATRIX[row]], mode="markers", text=texts,
            hovertemplate="%{text}<br>across %{x:.4g}, up %{y:.4g}<extra></extra>",
            marker={
                "symbol": symbols, "color": data["linear"], "coloraxis": "coloraxis", "size": 6,
                "line": {"color": "#1b1f24", "width": 0.3},
            },
            row=row, col=column + 1,
        )  # fmt: skip
    low, high = colour_ends(rows, "linear")
    drawn.update_layout(
        showlegend=False, margin={"l": 70, "r": 10, "t": 40, "b": 60},
        hoverlabel={"bgcolor": "#fff", "align": "left"},
        coloraxis={
            "colorscale": "Viridis", "cmin": low, "cmax": high if high > low else low + 1,
            "colorbar": {
                "orientation": "h", "thickness": 12, "len": 0.45, "x": 0.99, "xanchor": "right",
                "y": 0.97, "yanchor": "top", "title": {"text": "linear, test, %", "side": "top"},
            },
        },
    )  # fmt: skip
    controls = []
    for slot, first in enumerate(MATRIX):
        axes = _axes(drawn, slot, size)
        drawn.update_layout({f"{axis}_title_text": headings[first] for axis in axes})
        steps = [
            Step(
                heading,
                {
                    trace: {"y": name} if cell[0] == slot else {"x": name}
                    for trace, cell in enumerate(cells)
                    if slot in cell
                },
                {f"{axis}.title.text": heading for axis in axes},
            )
            for name, heading in headings.items()
        ]
        chosen = list(headings).index(first)
        controls.append(Control(f"{slot + 1}", steps, chosen=chosen))
    return drawn, controls, data


def _axes(drawn: Any, slot: int, size: int) -> list[str]:
    """The axes that bear the title of a slot: the lowest of its column, the first of its row."""
    axes = []
    if slot < size:
        axes.append(drawn.get_subplot(size, slot + 1).xaxis.plotly_name)
    if slot > 0:
        axes.append(drawn.get_subplot(slot, 1).yaxis.plotly_name)
    return axes


def _coefficients(found: Found) -> tuple[Any, Control]:
    """Coefficients with test accuracy as points with intervals, and the choice of the statistic."""
    drawn = figure(
        xaxis={"title": {"text": "rank correlation"}, "range": [-1.05, 1.05]},
        yaxis={"autorange": "reversed", "automargin": True},
        margin={"l": 20, "r": 20, "t": 30, "b": 50},
        scattermode="group",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    changes = {
        name: {
            trace: _points([found[metric, accuracy, name] for metric in METRICS])
            for trace, (accuracy, _) in enumerate(PROBES)
        }
        for name in STATISTICS
    }
    for trace, (_, label) in enumerate(PROBES):
        points = changes["spearman"][trace]
        drawn.add_scatter(
            x=points["x"], y=list(map(with_arrow, METRICS)), mode="markers", name=label,
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 0,
                "array": points["error_x.array"], "arrayminus": points["error_x.arrayminus"],
            },
            hovertemplate=f"{label}<br>%{{y}}: %{{x:.2f}}<extra></extra>", marker={"size": 9},
        )  # fmt: skip
    steps = [Step(STATISTICS[name][0], traces) for name, traces in changes.items()]
    return drawn, Control("coefficient", steps)


def _points(estimates: Sequence[Estimate]) -> dict[str, list[float]]:
    ones = [
        in_expected_direction(one, metric) for one, metric in zip(estimates, METRICS, strict=True)
    ]
    return {
        "x": [one.value for one in ones],
        "error_x.array": [one.high - one.value for one in ones],
        "error_x.arrayminus": [one.value - one.low for one in ones],
    }
