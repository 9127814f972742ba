"""The pictures of a sweep; each function returns a figure that no window owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hsplugin.plots import figure
from hsplugin.sweep.agreement import Estimate
from hsplugin.sweep.metrics import BACKBONE, METRICS

Row = dict[str, Any]

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
COLOURS = ("#1b6ca8", "#e07a1f", "#3a8f5d", "#a33b3b")
PROBES = (("linear", "linear probe"), ("knn", "kNN"))
# Encoders of one curve over the weight ratio agree in all of these.
FAMILY = ("method", "seed", "alpha", "t", "dim", "batch_size", "lr", "epochs")


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    drawing, axes = figure(columns, width=width, height=height)
    drawing.set_dpi(130)
    return drawing, axes


def colour_ends(rows: Sequence[Row], accuracy: str) -> tuple[float, float]:
    """Ends of the colour scale: from the lowest tenth, as collapsed encoders would stretch it."""
    values = [float(row[accuracy]) for row in rows]
    return float(np.quantile(values, 0.1)), max(values)


def plane(rows: Sequence[Row]) -> Any:
    """Every encoder at its alignment and uniformity, coloured by its accuracy on the test split."""
    drawing, axes = _figure(2, width=5.2, height=4.4)
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    table = pd.DataFrame(rows)
    for ax, (accuracy, title) in zip(axes, PROBES, strict=True):
        low, high = colour_ends(rows, accuracy)
        for number, (method, own) in enumerate(table.groupby("method", sort=False)):
            own, marker = own.sort_values(accuracy, kind="stable"), MARKERS[number % len(MARKERS)]
            drawn = ax.scatter(
                own["alignment"],
                own["uniformity"],
                c=own[accuracy],
                vmin=low,
                vmax=high if high > low else low + 1,
                cmap="viridis",
                marker=marker,
                s=42,
                edgecolors="white",
                linewidths=0.5,
            )
            ax.scatter([], [], marker=marker, color="0.4", s=42, label=method)
        drawing.colorbar(drawn, ax=ax, extend="min", label=f"{title} accuracy, test (%)")
        best = table.loc[table[accuracy].idxmax(), ["alignment", "uniformity"]]
        ax.scatter(*best, s=160, facecolors="none", edgecolors="#c0392b")
        ax.set(xlabel="alignment (validation)", title=f"{title}; the best one is ringed")
        ax.annotate(
            "better",
            xy=(0.03, 0.03),
            xytext=(0.16, 0.16),
            xycoords="axes fraction",
            color="0.45",
            fontsize=9,
            arrowprops={"arrowstyle": "->", "color": "0.45"},
        )
    axes[0].set_ylabel("uniformity, t = 2 (validation)")
    axes[0].legend(frameon=False, loc="upper right", fontsize=8)
    return drawing


def weights(rows: Sequence[Row]) -> Any:
    """Accuracy and geometry over the share of alignment in the two weights.

    One curve for each set of encoders that differ in nothing else; the longest is drawn bold.
    """
    weighted = pd.DataFrame(rows).dropna(subset="align_share").sort_values("align_share")
    families = (family for _, family in weighted.groupby(list(FAMILY), dropna=False))
    curves = sorted((f for f in families if len(f) >= 3), key=len, reverse=True)
    drawing, axes = _figure(2, width=5.2, height=4.2)
    accuracy_axes, geometry_axes = axes
    if not curves:
        for ax in axes:
            ax.text(0.5, 0.5, "fewer than three weight ratios", ha="center", va="center")
            ax.set_axis_off()
        return drawing
    main, *others = curves
    for number, curve in enumerate(others):
        accuracy_axes.plot(
            curve["align_share"],
            curve["linear"],
            color="0.75",
            lw=1,
            marker=".",
            label="linear, other alpha and t" if number == 0 else None,
        )
    share, first = main["align_share"], main.iloc[0]
    for (accuracy, title), colour in zip(PROBES, COLOURS, strict=False):
        accuracy_axes.plot(share, main[accuracy], "o-", color=colour, label=title)
    accuracy_axes.set(
        xlabel="share of alignment in the weights",
        ylabel="accuracy, test (%)",
        title=f"accuracy (alpha = {first['alpha']:g}, t = {first['t']:g}, d = {first['dim']})",
    )
    accuracy_axes.legend(frameon=False, fontsize=8, loc="lower center")
    geometry_axes.plot(share, main["alignment"], "o-", color=COLOURS[2], label="alignment")
    potential = np.exp(main["uniformity"])
    label = "exp(uniformity); 1 is collapse"
    geometry_axes.plot(share, potential, "s-", color=COLOURS[3], label=label)
    geometry_axes.set(
        xlabel="share of alignment in the weights", title="geometry of the same encoders"
    )
    geometry_axes.legend(frameon=False, fontsize=8)
    return drawing


def in_expected_direction(one: Estimate, metric: str) -> Estimate:
    """A coefficient of a metric, signed so that above zero means the expected sign."""
    if METRICS[metric][1] > 0:
        return one
    return replace(one, value=-one.value, low=-one.high, high=-one.low)


def with_arrow(metric: str) -> str:
    """A metric's heading, with its expected sign as an arrow."""
    heading, sign = METRICS[metric]
    return f"{heading} {'↓' if sign < 0 else '↑'}"


def coefficients(found: dict[tuple[str, str, str], Estimate]) -> Any:
    """Spearman's coefficient of each metric with accuracy on the test split, with intervals.

    Signed so that the right side means the expected sign; projections left, backbone right.
    """
    names = [name for name in METRICS if f"{BACKBONE}{name}" in METRICS]
    drawing, axes = _figure(2, width=4.6, height=0.6 + 0.3 * len(names))
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    panels = zip(axes, ("", BACKBONE), ("projections", "backbone features"), strict=True)
    for ax, prefix, measured in panels:
        for offset, (accuracy, title) in enumerate(PROBES):
            for place, name in enumerate(names):
                metric = f"{prefix}{name}"
                one = in_expected_direction(found[metric, accuracy, "spearman"], metric)
                y = place + 0.16 * (2 * offset - 1)
                ax.plot([one.low, one.high], [y, y], color=COLOURS[offset], lw=1.5)
                label = title if place == 0 and not prefix else None
                ax.plot(one.value, y, "o", color=COLOURS[offset], label=label)
        ax.axvline(0, color="0.6", lw=0.8)
        ax.set(xlim=(-1.02, 1.02), title=f"of {measured}")
    axes[0].set_yticks(range(len(names)), list(map(with_arrow, names)))
    axes[0].invert_yaxis()
    drawing.supxlabel(
        "Spearman correlation with test accuracy in the expected direction", fontsize=10
    )
    drawing.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=2)
    return drawing
