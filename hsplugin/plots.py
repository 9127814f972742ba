"""Plots of features on the sphere, drawn into axes that the caller owns.

No function uses pyplot, so no figure stays open and the user's backend does not change.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hsplugin.metrics.directions import directions
from hsplugin.metrics.moments import covariance_spectrum


def figure(
    columns: int, *, rows: int = 1, width: float = 4.0, height: float = 3.6
) -> tuple[Any, list[Any]]:
    """A figure with axes of that size each, row by row, not tied to a window: (figure, axes).

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib; install it with: pip install 'hsplugin[compare]'"
        ) from error
    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, 1 + i) for i in range(rows * columns)]
    return made, axes


def png(made: Any, dpi: int = 100) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def features_on_circle(axes: Any, features: Tensor, labels: Tensor | None = None) -> None:
    """Features (n, 2) as points on the unit circle, with the density of their angles around it.

    The density is a von Mises-Fisher kernel estimate, as in the paper's figure 3; its distance from
    the circle is proportional to it, so a uniform one is a ring of constant width.

    Raises:
        ValueError: If the features do not have two dimensions.
    """
    if features.dim() != 2 or features.shape[1] != 2:
        raise ValueError(f"features must have shape (n, 2), got {tuple(features.shape)}")
    points = directions(features.detach().cpu())
    angles = torch.atan2(points[:, 1], points[:, 0])
    grid = torch.linspace(-torch.pi, torch.pi, 361)
    concentration = 50.0
    # exp(k (cos - 1)) is the kernel up to a factor, which the mean over the circle takes out.
    kernel = torch.exp(concentration * (torch.cos(grid[:, None] - angles) - 1)).mean(dim=1)
    density = kernel / kernel[:-1].mean()
    radius = 1 + 0.2 * density / density.max().clamp(min=2.0)
    circle = [(torch.cos(grid) * scale, torch.sin(grid) * scale) for scale in (1.0, radius)]
    axes.fill(
        torch.cat([circle[1][0], circle[0][0].flip(0)]).numpy(),
        torch.cat([circle[1][1], circle[0][1].flip(0)]).numpy(),
        alpha=0.3,
        linewidth=0,
    )
    colours, cmap = _colours(labels)
    axes.scatter(points[:, 0], points[:, 1], s=6, c=colours, cmap=cmap, linewidths=0)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), title="features on the circle")
    axes.set_aspect("equal")


def principal_plane(axes: Any, features: Tensor, labels: Tensor | None = None) -> None:
    """Unit features (n, d) in the plane of their first two principal directions.

    The axis labels give the share of variance of each direction. The circle is the outline of the
    sphere; only features that lie in the plane reach it.

    Raises:
        ValueError: If the features are not (n, d) with at least two rows and two dimensions.
    """
    if features.dim() != 2 or min(features.shape) < 2:
        raise ValueError(
            f"features must have shape (n, d), n >= 2 and d >= 2, got {tuple(features.shape)}"
        )
    points = directions(features.detach().cpu())
    _, lengths, principal = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    plane = points @ principal[:2].T
    share = lengths.square() / lengths.square().sum().clamp(min=torch.finfo(points.dtype).tiny)
    colours, cmap = _colours(labels)
    axes.scatter(plane[:, 0], plane[:, 1], s=6, c=colours, cmap=cmap, linewidths=0)
    outline = torch.linspace(0, 2 * torch.pi, 181)
    axes.plot(outline.cos(), outline.sin(), color="0.8", linewidth=1)
    axes.set(
        xlabel=f"first direction, {share[0]:.0%} of variance",
        ylabel=f"second, {share[1]:.0%}",
        title=f"features in the plane, d = {features.shape[1]}",
    )
    axes.set_aspect("equal")


def spectrum(axes: Any, features: Tensor) -> None:
    """Eigenvalues of the covariance of unit features (n, d), both axes logarithmic.

    The dashed line is what features spread in all directions alike have, 1 / d each.

    Raises:
        ValueError: If the features are not (n, d) with at least two rows.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (n, d), n >= 2, got {tuple(features.shape)}")
    eigenvalues = covariance_spectrum(directions(features.detach().cpu()))
    positive = eigenvalues[eigenvalues > 0]
    axes.plot(range(1, len(positive) + 1), positive.numpy(), linewidth=1)
    axes.axhline(1 / features.shape[1], color="0.6", linestyle="--", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="index",
        ylabel="eigenvalue of the covariance",
        title=f"spectrum, {len(positive)} of {features.shape[1]} above zero",
    )


def distance_histogram(axes: Any, x: Tensor, y: Tensor, label: str | None = None) -> None:
    """Histogram of the distances of positive pairs on the unit sphere, with their mean.

    Raises:
        ValueError: If the views differ in shape.
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must be pairs, got {tuple(x.shape)} and {tuple(y.shape)}")
    first, second = directions(x.detach().cpu()), directions(y.detach().cpu())
    distances = torch.linalg.vector_norm(first - second.to(first.dtype), dim=1)
    bars = axes.hist(distances.numpy(), bins=40, range=(0, 2), density=True, alpha=0.6, label=label)
    colour = bars[2][0].get_facecolor()
    axes.axvline(float(distances.mean()), color=colour, linestyle="--", linewidth=1)
    axes.set(
        xlim=(0, 2),
        xlabel="distance of positive pairs",
        title=f"mean {float(distances.mean()):.3f}",
    )


def trajectory(axes: Any, alignment: Sequence[float], uniformity: Sequence[float]) -> None:
    """The path of training through the alignment-uniformity plane; lower left is better.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(alignment) != len(uniformity):
        raise ValueError(
            f"alignment and uniformity must have one length, got {len(alignment)} and "
            f"{len(uniformity)}"
        )
    axes.plot(alignment, uniformity, marker="o", markersize=3, linewidth=1)
    if alignment:
        axes.annotate("start", (alignment[0], uniformity[0]), fontsize=8)
        axes.plot(alignment[-1:], uniformity[-1:], marker="*", markersize=10, color="C3")
    axes.set(xlabel="alignment", ylabel="uniformity", title="path of training")


def _colours(labels: Tensor | None) -> tuple[Any, str | None]:
    # Without labels matplotlib warns that the colour map is unused.
    return (None, None) if labels is None else (labels.detach().cpu().numpy(), "tab10")
