"""The pictures of a comparison; each function returns a figure that no window owns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hsplugin.lab.methods import UNTRAINED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Further ones are stars with so many points.
MARKERS = (*"osD^vP*Xhp<>8d", (3, 1, 0), (4, 1, 0), (6, 1, 0), (8, 1, 0))


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'hsplugin[compare]'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def plane(results: Sequence[Mapping[str, Any]], accuracy: str = "linear") -> Figure:
    """Draw the alignment-uniformity plane, one point per run, coloured by accuracy.

    Args:
        results: Rows with ``method``, ``alignment``, ``uniformity``, ``uniformity_optimum`` and
            the accuracy in percent.
        accuracy: Which column gives the colour.

    Returns:
        The figure; lower left is better on both axes.
    """
    figure, axes = _figure(9.0, 5.0)
    methods = list(dict.fromkeys(row["method"] for row in results))
    # Leave the baseline out of the colour scale.
    trained = [row for row in results if row["method"] != UNTRAINED] or list(results)
    values = [row[accuracy] for row in trained]
    colours = {"vmin": min(values), "vmax": max(values), "cmap": "viridis"}
    points = None
    for marker, method in zip(MARKERS * len(methods), methods, strict=False):
        rows = [row for row in results if row["method"] == method]
        x, y = [row["alignment"] for row in rows], [row["uniformity"] for row in rows]
        seen = {"marker": marker, "s": 90, "edgecolors": "black", "linewidths": 0.7, "zorder": 3}
        if method == UNTRAINED:
            axes.scatter(x, y, color="lightgrey", label=method, **seen)
        else:
            points = axes.scatter(
                x, y, c=[row[accuracy] for row in rows], label=method, **seen, **colours
            )
    optima = {round(row["uniformity_optimum"], 6) for row in results}
    for optimum in sorted(optima):
        axes.axhline(optimum, color="grey", linestyle="--", linewidth=0.9, zorder=1)
    axes.annotate(
        "uniform on the sphere",
        (0.01, max(optima)),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        va="bottom",
        color="grey",
        fontsize=8,
    )
    axes.margins(0.08)
    axes.set_xlabel("alignment of positive pairs  (lower is better)")
    axes.set_ylabel("uniformity, t = 2  (lower is better)")
    axes.set_title(f"Held-out features on the sphere, {results[0].get('data', '')}".rstrip(", "))
    axes.grid(alpha=0.25)
    # Beside the plane, where many methods hide no point.
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_array(None)  # colours mean accuracy, not method
        handle.set_facecolor("white")
    if points is not None:
        figure.colorbar(points, ax=axes, label=f"{accuracy} accuracy on test images, %")
    return figure  # type: ignore[no-any-return]


def distances(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Distances ``(n,)`` in [0, 2] by kind of pair, of unit features ``(n, d)`` of two views."""
    other = b.roll(max(1, len(b) // 2), dims=0)
    return {
        "two views of one image": (a - b).norm(dim=1).clamp(max=2),
        "two images": (a - other).norm(dim=1).clamp(max=2),
    }


def bins_of(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """How many bins [0, 2] has in histograms of distances: as many as the images can fill."""
    return 30 if min(len(a) for a, _ in pairs.values()) < 1000 else 60


def pair_histograms(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw the distances of positive and of random pairs for each method.

    Args:
        pairs: Method -> unit features ``(n, d)`` of two views of the same images.

    Returns:
        One histogram per method and kind of pair.
    """
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure, grid = _figure(
        3.0 * columns, 2.2 * rows + 0.4, rows, columns, sharex=True, squeeze=False
    )
    steps = bins_of(pairs)
    bins = [2 * i / steps for i in range(steps + 1)]
    for axes, (method, (a, b)) in zip(grid.flat, pairs.items(), strict=False):
        for (label, lengths), colour in zip(
            distances(a, b).items(), ("tab:blue", "tab:orange"), strict=True
        ):
            axes.hist(
                lengths.tolist(),
                bins,
                density=True,
                color=colour,
                alpha=0.6,
                label=label,
            )
            axes.axvline(float(lengths.mean()), color=colour, linewidth=1.2)
        axes.set_title(method, fontsize=9)
        axes.set_yticks([])
        axes.set_xlim(0, 2)
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("distance on the unit sphere", fontsize=8)
    figure.legend(
        *grid.flat[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    return figure  # type: ignore[no-any-return]
