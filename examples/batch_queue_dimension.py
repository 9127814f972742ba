"""What the sizes of batch, queue and dimension do to align + uniform and to NT-Xent.

Reads the folder of a sweep over these three and draws uniformity and accuracy over each, with two
marks: the optimum, which a uniform distribution has, and the lowest value that so few points can
have. Points in high dimension can be further apart than independent uniform ones: d + 1 of them can
form a simplex. So the uniformity of a small batch may lie below the optimum, and that is no error.

    hsplugin sweep --grid examples/results/sizes/grid.yaml --epochs 40 --out sizes
    python examples/batch_queue_dimension.py sizes
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linprog
from scipy.special import eval_chebyt, eval_gegenbauer

from hsplugin import plots, uniformity_optimum
from hsplugin.lab.data import load
from hsplugin.lab.files import markdown_table

COLOURS = ("#1b6ca8", "#e07a1f", "#3a8f5d", "#a33b3b")
SIZES = {"batch_size": "batch size", "queue": "size of the queue", "dim": "dimension"}
T = 2.0


def lowest_uniformity(points: int, dim: int, t: float = T, degree: int = 16) -> float:
    """A lower bound of the uniformity of any so many points on the unit sphere.

    For f = sum_k f_k P_k <= exp(-2 t (1 - x)) on [-1, 1] with Gegenbauer polynomials P_k(1) = 1 and
    f_k >= 0 for k >= 1, the mean over pairs is at least f_0 - sum_{k >= 1} f_k / (points - 1)
    (Delsarte and Yudin). The best f is a linear program. The bound is attained by the simplex, the
    cross-polytope and other universally optimal sets (Cohn & Kumar, 2007).

    Args:
        points: How many points, at least 2.
        dim: Their dimension, at least 2.
        t: Inverse width of the Gaussian.
        degree: Degree of f; a larger one gives no lower bound, a closer one where points are many.
    """
    x = np.cos(np.linspace(0, math.pi, 1500))
    basis = np.stack([_polynomial(k, dim, x) for k in range(degree + 1)], axis=1)
    potential = np.exp(-2 * t * (1 - x))
    cost = np.r_[-1.0, np.full(degree, 1 / (points - 1))]
    bounds = [(None, None), *[(0, None)] * degree]
    solved = linprog(cost, A_ub=basis, b_ub=potential, bounds=bounds)
    if not solved.success:
        raise RuntimeError(f"no bound for {points} points in {dim} dimensions: {solved.message}")
    f = solved.x
    # Between the grid's points f may exceed the potential by a little: take that off.
    fine = np.cos(np.linspace(0, math.pi, 40_000))
    above = sum(f[k] * _polynomial(k, dim, fine) for k in range(degree + 1))
    excess = max(0.0, float((above - np.exp(-2 * t * (1 - fine))).max()))
    return math.log(f[0] - excess - f[1:].sum() / (points - 1))


def _polynomial(k: int, dim: int, x: np.ndarray) -> np.ndarray:
    if dim == 2:
        return eval_chebyt(k, x)
    return eval_gegenbauer(k, dim / 2 - 1, x) / eval_gegenbauer(k, dim / 2 - 1, 1.0)


def read(folder: Path) -> pd.DataFrame:
    """The sweep's encoders, with the size of the queue as a column."""
    rows = pd.read_csv(folder / "sweep.csv")
    both = zip(rows["defaults"], rows["options"], strict=True)
    options = [json.loads(defaults) | json.loads(given) for defaults, given in both]
    return rows.assign(queue=[one.get("queue") for one in options])


def varied(rows: pd.DataFrame, size: str) -> pd.DataFrame:
    """The encoders that belong to the curve over one of the sizes."""
    other = {name: rows[name].mode()[0] for name in ("batch_size", "dim") if name != size}
    own = rows[np.logical_and.reduce([rows[name] == value for name, value in other.items()])]
    return own[own["queue"].notna() == (size == "queue")]


def table(rows: pd.DataFrame, points: int) -> str:
    """Mean and standard deviation over seeds along each size, beside the two marks."""
    lines = [
        [
            *("size", "", "method", "uniformity", "optimum", f"lowest of {points}"),
            *("lowest of a batch", "alignment", "linear %", "kNN %"),
        ]
    ]
    for size, heading in SIZES.items():
        for (value, method), own in varied(rows, size).groupby([size, "method"]):
            dim, batch = int(own["dim"].iloc[0]), int(own["batch_size"].iloc[0])
            marks = [
                uniformity_optimum(dim, T),
                lowest_uniformity(points, dim),
                lowest_uniformity(batch, dim),
            ]
            lines.append(
                [
                    *(heading, f"{value:g}", method, _spread(own["uniformity"], 3)),
                    *(f"{mark:.3f}" for mark in marks),
                    *(_spread(own["alignment"], 3), _spread(own["linear"], 1)),
                    _spread(own["knn"], 1),
                ]
            )
    return markdown_table(lines)


def _spread(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def draw(rows: pd.DataFrame, points: int) -> Any:
    """Uniformity above accuracy, over each of the sizes."""
    drawing, axes = plots.figure(3, rows=2, width=4.2, height=3.2)
    for column, (size, heading) in enumerate(SIZES.items()):
        own = varied(rows, size)
        top, bottom = axes[column], axes[3 + column]
        for colour, (method, curve) in zip(COLOURS, own.groupby("method"), strict=False):
            for ax, measure in ((top, "uniformity"), (bottom, "linear")):
                found = curve.groupby(size)[measure].agg(["mean", "std"])
                ax.errorbar(
                    found.index, found["mean"], found["std"], color=colour, fmt="o-", ms=4,
                    lw=1.2, label=method,
                )  # fmt: skip
        sizes = sorted(own[size].unique())
        dims = [int(own[own[size] == value]["dim"].iloc[0]) for value in sizes]
        batches = [int(own[own[size] == value]["batch_size"].iloc[0]) for value in sizes]
        top.plot(sizes, [uniformity_optimum(d, T) for d in dims], "k--", lw=1, label="optimum")
        of_points = [lowest_uniformity(points, d) for d in dims]
        top.plot(sizes, of_points, "k:", lw=1, label=f"lowest of {points} points")
        if size != "queue":
            of_batch = [lowest_uniformity(n, d) for n, d in zip(batches, dims, strict=True)]
            top.plot(sizes, of_batch, "-.", color="0.6", lw=1, label="lowest of a batch")
        for ax in (top, bottom):
            ax.set_xscale("log", base=2)
        bottom.set_xlabel(heading)
        top.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("uniformity (validation)")
    axes[3].set_ylabel("linear accuracy, test (%)")
    return drawing


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="of the sweep; the picture and the table go there"
    )
    args = parser.parse_args(argv)
    rows = read(args.folder)
    points = len(load(str(rows["data"].iloc[0]), None).validation)
    text = table(rows, points)
    (args.folder / "sizes.md").write_text(text + "\n")
    draw(rows, points).savefig(args.folder / "sizes.png", dpi=130)
    print(text)


if __name__ == "__main__":
    main()
