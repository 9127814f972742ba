"""Spread points over the unit sphere by gradient descent on only the uniformity loss.

The points start in a cap and end where theory predicts: at the attainable optimum
U* = -2t + log 0F1(; d/2; t^2), the uniformity of the uniform distribution (Wang & Isola, 2020).
Two estimates from N points approach it from both sides:

- with self pairs (``include_self=True``, the V-statistic) it is the energy of a distribution, that
  of the points, so it never lies below U*, and well spread points reach U*;
- without self pairs (the loss that is trained), the best N points lie *below* U*, down to
  log((N exp U* - 1) / (N - 1)). If N is small compared with exp(-U*), as in high dimensions, that
  is far below U*, which is neither an error nor better than uniform.

    python examples/uniform_points_on_sphere.py --dims 2 3 16 128 --points 512 --out figure.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hsplugin import uniform_loss, uniformity_optimum
from hsplugin.functional import unit_rows


class Descent(NamedTuple):
    """Points before and after, and both estimates of their uniformity at every step."""

    start: Tensor
    end: Tensor
    without_self: list[float]
    with_self: list[float]


def points_in_a_cap(points: int, dim: int, *, seed: int = 0) -> Tensor:
    """Unit vectors close to the first axis, shape (points, dim), float64."""
    generator = torch.Generator().manual_seed(seed)
    around_axis = 0.5 / math.sqrt(dim)
    x = around_axis * torch.randn(points, dim, generator=generator, dtype=torch.float64)
    x[:, 0] += 1
    return unit_rows(x)


def spread(start: Tensor, *, t: float = 2.0, steps: int = 400, rate: float = 0.5) -> Descent:
    """Minimise ``uniform_loss`` with momentum, and project onto the sphere after every step.

    A point's gradient is of order 1 / N, so the step is ``rate`` times N / t.
    """
    x = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=rate * len(x) / t, momentum=0.9)
    without_self, with_self = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = uniform_loss(x, t)
        loss.backward()
        without_self.append(loss.item())
        with_self.append(uniform_loss(x.detach(), t, include_self=True).item())
        optimizer.step()
        with torch.no_grad():
            x.copy_(unit_rows(x))
    return Descent(start, x.detach(), without_self, with_self)


def least_without_self(points: int, dim: int, t: float = 2.0) -> float:
    """The ``uniform_loss`` of N points whose V-statistic is exactly the optimum.

    No N points have a lower loss. If the self pairs alone exceed the optimum, the bound is -4t, the
    loss of antipodes.
    """
    others = points * math.exp(uniformity_optimum(dim, t)) - 1
    return max(-4 * t, math.log(others / (points - 1)) if others > 0 else -math.inf)


def draw(descents: dict[int, Descent], t: float, path: Path) -> None:
    """Draw one column per dimension: the path to the optimum, and the points before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    before, after, loss_colour = "#b9b9b9", "#1b6ca8", "#e07a1f"
    columns = len(descents)
    figure = plt.figure(figsize=(3.4 * columns, 6.4), layout="constrained")
    for column, (dim, descent) in enumerate(descents.items(), start=1):
        optimum = uniformity_optimum(dim, t)
        axes = figure.add_subplot(2, columns, column)
        for values, colour, label in (
            (descent.with_self, after, "with self pairs"),
            (descent.without_self, loss_colour, "without (the loss)"),
        ):
            axes.plot(np.arange(1, len(values) + 1), np.subtract(values, optimum), colour)
            axes.plot([], [], colour, label=label)
        axes.axhline(0, color="black", lw=1, ls="--", label=f"optimum {optimum:.3f}")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.set(xlabel="step", title=f"{len(descent.end)} points, d = {dim}", ylim=(-0.3, 5))
        axes.legend(frameon=False, fontsize=8)
        if column == 1:
            axes.set_ylabel(f"uniformity (t = {t:g}) minus the optimum")

        axes = figure.add_subplot(
            2, columns, columns + column, projection="3d" if dim == 3 else None
        )
        if dim > 3:
            for x, colour, label in ((descent.start, before, "start"), (descent.end, after, "end")):
                i, j = torch.triu_indices(len(x), len(x), offset=1)
                products = (x @ x.T)[i, j].numpy()
                axes.hist(products, bins=80, density=True, color=colour, label=label)
            s = np.linspace(-1, 1, 400)[1:-1]
            log_area = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - math.log(math.pi) / 2
            density = np.exp(log_area + (dim - 3) / 2 * np.log1p(-(s**2)))
            axes.plot(s, density, color="black", lw=1, ls="--", label="uniform distribution")
            axes.set(xlabel="inner product of two points", yticks=[], xlim=(-1, 1))
        else:
            inwards = 0.92  # keeps the start visible beside the end
            axes.scatter(*(inwards * descent.start).T.numpy(), s=3, color=before, label="start")
            axes.scatter(*descent.end.T.numpy(), s=3, color=after, label="end")
            axes.set_aspect("equal")
            axes.set_axis_off()
            if dim == 3:
                axes.set_box_aspect((1, 1, 1), zoom=1.5)
                axes.view_init(elev=20, azim=-40)
        axes.legend(
            frameon=False, fontsize=8, loc={2: "center", 3: "upper right"}.get(dim, "upper left")
        )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3, 16, 128])
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--t", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a PNG or SVG to draw")
    args = parser.parse_args(argv)

    print(f"{'d':>4} {'N':>6} {'U*':>9} {'V - U*':>10} {'loss - U*':>10} {'loss - least':>12}")
    descents = {}
    for dim in args.dims:
        start = points_in_a_cap(args.points, dim, seed=args.seed)
        descent = descents[dim] = spread(start, t=args.t, steps=args.steps)
        optimum = uniformity_optimum(dim, args.t)
        loss, energy = descent.without_self[-1], descent.with_self[-1]
        least = least_without_self(args.points, dim, args.t)
        print(
            f"{dim:>4} {args.points:>6} {optimum:>9.5f} {energy - optimum:>10.1e} "
            f"{loss - optimum:>10.1e} {loss - least:>12.1e}"
        )
    if args.out:
        draw(descents, args.t, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
