"""A comparison as a page: the plane over the epochs, distances of pairs, tables that sort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hsplugin.compare import tuning
from hsplugin.compare.groups import SUMMARY, Group, Row, options_in_words, summary
from hsplugin.compare.pictures import bins_of, distances
from hsplugin.compare.words import budget, explanation, methods_in_words
from hsplugin.lab.methods import UNTRAINED
from hsplugin.lab.run import ACCURACIES
from hsplugin.page import COLOURS, Cell, Page, figure, shown
from hsplugin.page.controls import Control, Step
from hsplugin.page.plane import Cloud, Colour, plane
from hsplugin.provenance import in_words

DASHES = ("solid", "dash", "dot")
# Columns of a run that are no accuracy of the test split -> decimals.
MEASURES = {
    **{"alignment": 4, "uniformity": 4, "validation_knn": 1, "validation_linear": 1},
    **{"best_epoch": 0, "images_per_second": 0, "seconds": 1, "peak_memory_mib": 0},
}


def page(
    groups: Sequence[Group],
    history: Sequence[Row],
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    differences: Sequence[Row],
    candidates: Sequence[Row],
    unfinished: Sequence[str],
    command: Sequence[str],
) -> str:
    """A self-contained page.

    Args:
        groups: The finished runs.
        history: A row for each measured epoch of each run, in the order of the epochs.
        pairs: For each group the unit features ``(n, d)`` of two views of the same images.
        differences: What `difference_rows` gives.
        candidates: What `tuning.rows_of` gives.
        unfinished: Folders of the runs without a result.
        command: The command line, for the record.

    Raises:
        ImportError: If plotly is missing.
    """
    first = groups[0].rows[0]
    made = Page(f"Comparison on {first['data']}")
    made.table(
        ["method", "seeds", *SUMMARY.values()],
        [
            [group.label, len(group.rows)]
            + [Cell(mean.value, mean.around, mean.digits) for mean in means.values()]
            for group, means in zip(groups, summary(groups), strict=True)
        ],
    )
    for paragraph in explanation(groups):
        made.text(paragraph.replace("*", ""))  # of Markdown
    if unfinished:
        made.text(f"Without a result, as they failed or were stopped: {', '.join(unfinished)}.")
    made.heading("The plane")
    made.text(
        "Each point is a run, and its grey line the path of its training. Lower left is better."
    )
    drawn, epochs, colour = _plane(groups, history)
    made.controlled(drawn, epochs, colour, height=640)
    made.heading("Distances of pairs of validation images")
    made.text("Of the first seed. A double click on a name in the legend shows it alone.")
    made.figures(*_distances(pairs), height=480)
    made.heading("Runs")
    made.text("Below an accuracy: its standard error from the number of test images.")
    _runs(made, groups)
    if differences:
        made.heading("Differences")
        made.table(
            ["accuracy", "first", "second", "difference", "standard error", "p-value"],
            [
                [
                    *(row["accuracy"], row["first"], row["second"]),
                    Cell(row["difference"], digits=2),
                    Cell(row["standard_error"], digits=2),
                    row["p_value"],
                ]
                for row in differences
            ],
        )
    if candidates:
        made.heading("Tuning")
        made.text(tuning.CHOICE.replace("\n", " ") + ".")
        made.table(
            ["method", "candidate", *tuning.COLUMNS.values(), "chosen"],
            [
                [row["method"], options_in_words(row["options"]) or "defaults"]
                + [Cell(row[name], digits=1) for name in tuning.COLUMNS]
                + ["x" if row["chosen"] else ""]
                for row in candidates
            ],
        )
    made.heading("How this was made")
    made.facts(list(methods_in_words(groups).items()))
    seeds = sorted({row["seed"] for group in groups for row in group.rows})
    made.facts(
        [
            ("Budget", budget(groups)),
            ("Seeds", ", ".join(map(str, seeds))),
            *in_words(first["provenance"], command),
        ]
    )
    return made.html()


def _accuracy(row: Row, name: str) -> Cell:
    error = row[f"{name}_se"]
    return Cell(row[name], "" if error is None else f"± {error:.1f}", digits=1)


def _runs(made: Page, groups: Sequence[Group]) -> None:
    made.table(
        ["method", "options", "seed", *(SUMMARY[name] for name in ACCURACIES)]
        + [name.replace("_", " ") for name in MEASURES]
        + ["folder"],
        [
            [row["method"], options_in_words(row["options"]), row["seed"]]
            + [_accuracy(row, name) for name in ACCURACIES]
            + [Cell(row.get(name), digits=digits) for name, digits in MEASURES.items()]
            + [f"runs/{row['run']}"]
            for group in groups
            for row in group.rows
        ],
    )


def _plane(groups: Sequence[Group], history: Sequence[Row]) -> tuple[Any, Control, Control]:
    """The plane at the end of training, the slider over the epochs, the choice of the colour."""
    measured: dict[str, list[Row]] = {row["run"]: [] for group in groups for row in group.rows}
    for one in history:
        measured[one["run"]].append(one)
    epochs = sorted({one["epoch"] for one in history})
    clouds = [
        Cloud(
            group.label,
            *_places([_end(row) for row in group.rows]),
            texts=[_hover(row) for row in group.rows],
            paths=[
                ([one["alignment"] for one in rows], [one["uniformity"] for one in rows])
                for rows in (measured[row["run"]] for row in group.rows)
                if len(rows) > 1
            ],
        )
        for group in groups
    ]
    colours = [_colour(groups, name) for name in ("linear", "knn", "best_linear", "best_knn")]
    optima = [row["uniformity_optimum"] for group in groups for row in group.rows]
    drawn, colour, markers = plane(clouds, colours, optima)
    steps = []
    for epoch in epochs:
        traces = {}
        for trace, group in zip(markers, groups, strict=True):
            # The end is what the tables say; before it, the last epoch that was measured.
            at = [
                _end(row) if epoch == epochs[-1] else _latest(measured[row["run"]], epoch)
                for row in group.rows
            ]
            traces[trace] = dict(zip(("x", "y", "customdata"), _places(at), strict=True))
        steps.append(Step(f"epoch {epoch}", traces))
    return drawn, Control("epoch", steps, chosen=len(steps) - 1, slider=True), colour


def _end(row: Row) -> Row:
    epoch = 0 if row["method"] == UNTRAINED else row["epochs"]
    return {**row, "epoch": epoch}


def _latest(rows: Sequence[Row], epoch: int) -> Row | None:
    return max(
        (one for one in rows if one["epoch"] <= epoch), key=lambda one: one["epoch"], default=None
    )


def _places(
    rows: Sequence[Row | None],
) -> tuple[list[float | None], list[float | None], list[str]]:
    """Alignment, uniformity and what the hover adds; none where nothing is measured yet."""
    notes = []
    for row in rows:
        knn = row and row.get("validation_knn")
        accuracy = "" if knn is None else f", kNN on validation {knn:.1f} %"
        notes.append(f"<br>epoch {row['epoch']}{accuracy}" if row else "")
    return (
        [row["alignment"] if row else None for row in rows],
        [row["uniformity"] if row else None for row in rows],
        notes,
    )


def _hover(row: Row) -> str:
    """A run in words: its method, options, seed, and accuracies at the end."""
    options = "".join(f"<br>{shown(f'{n} {value}')}" for n, value in row["options"].items())
    accuracies = []
    for name, title in (("linear", "linear"), ("knn", "kNN")):
        cell = _accuracy(row, name)
        accuracies.append(f"{title} {cell.value:.1f} {cell.small}".rstrip() + " %")
    end = f"{', '.join(accuracies)} at the end"
    return f"<b>{shown(row['method'])}</b>{options}<br>seed {row['seed']}<br>{end}"


def _colour(groups: Sequence[Group], name: str) -> Colour:
    """An accuracy as colour; the untrained encoder would stretch the scale."""
    trained = [group.rows[0]["method"] != UNTRAINED for group in groups]
    values = [
        [row[name] for row in group.rows] if ours or not any(trained) else None
        for group, ours in zip(groups, trained, strict=True)
    ]
    known = [value for of_group in values if of_group for value in of_group]
    return Colour(f"{SUMMARY[name]} on test images", values, min(known), max(known))


def _distances(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> list[Any]:
    """For each kind of pair the density of its distances, a line for each group."""
    bins = bins_of(pairs)
    middles = [2 * (place + 0.5) / bins for place in range(bins)]
    lengths = {name: distances(*both) for name, both in pairs.items()}
    made = []
    for kind in next(iter(lengths.values())):
        drawn = figure(
            title=kind.capitalize(),
            xaxis={"title": {"text": "distance on the unit sphere"}, "range": [0, 2]},
            yaxis={"title": {"text": "density"}, "rangemode": "tozero"},
            showlegend=True,
        )
        for number, (name, of_kinds) in enumerate(lengths.items()):
            counts = torch.histc(of_kinds[kind][of_kinds[kind].isfinite()], bins, 0, 2)
            density = counts / counts.sum().clamp(min=1) * bins / 2
            drawn.add_scatter(
                x=middles,
                y=[round(value, 5) for value in density.tolist()],
                mode="lines",
                name=shown(name),
                line={
                    "shape": "hvh",
                    "width": 1.6,
                    "color": COLOURS[number % len(COLOURS)],
                    "dash": DASHES[number // len(COLOURS) % len(DASHES)],
                },
            )
        made.append(drawn)
    return made
