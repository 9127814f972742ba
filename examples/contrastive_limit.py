"""The contrastive loss becomes alignment plus uniformity as the number of negatives grows.

With M negatives drawn from the data (Wang & Isola, 2020, theorem 1), as M grows,

    L(M) - log M  ->  -E[f(x).f(y)] / tau  +  E_x log E_x' exp(f(x').f(x) / tau).

Per anchor the difference is log(a / mu), where mu = E_x' exp(f(x').f(x) / tau) and a is its mean
over M negatives plus the positive's share. The logarithm has slope at most e^(1/tau) here and the
standard deviation of exp(.) is at most (e^(1/tau) - e^(-1/tau)) / 2, so that

    E |log(a / mu)|  <=  e^(1/tau) (e^(1/tau) / M + (e^(1/tau) - e^(-1/tau)) / (2 sqrt M)):

the proven rate M^(-1/2). Measured: the mean absolute difference falls at exactly that rate; the
error of the loss, where differences of opposite sign cancel, falls faster, like 1/M.

The two terms are ours: where every point sees the same mu, as on features that are uniform on the
sphere, the limit is align_loss / (2 tau) + uniform_loss at t = 1 / (2 tau); elsewhere it is less,
by Jensen's inequality.

Their gradient is that of NT-Xent too, so that learning rates carry over: a table compares the two
on rows in ten clusters, for `AlignUniformLoss.from_temperature` and for the default weights.

    python examples/contrastive_limit.py --tau 0.5 --out figure.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from hsplugin import AlignUniformLoss, align_loss, uniform_loss, uniformity_optimum
from hsplugin.functional import unit_rows


class Draw(NamedTuple):
    """Inner products of A anchors: with positives (A,), negatives (A, M), and log mu (A,)."""

    positive: Tensor
    negatives: Tensor
    log_mu: Tensor


Sampler = Callable[[int, int, Generator], Draw]


class Problem(NamedTuple):
    """Features whose limit is known exactly, and how to draw anchors and negatives from them."""

    sample: Sampler
    limit: float
    two_terms: float


class Agreement(NamedTuple):
    """One loss's gradient beside NT-Xent's: their cosine, and the ratio of their norms."""

    cosine: float
    ratio: float


class Point(NamedTuple):
    """Results with M negatives: the loss minus log M, its error, and the mean absolute error."""

    negatives: int
    value: float
    error: float
    absolute: float


def on_the_sphere(tau: float, dim: int = 16, cosine: float = 0.8) -> Problem:
    """Features uniform on the sphere, positives at a fixed angle: the limit has a closed form."""
    t = 1 / (2 * tau)
    log_mu = uniformity_optimum(dim, t) + 2 * t

    def unit(*shape: int, generator: Generator) -> Tensor:
        x = torch.randn(*shape, dim, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    def positives(x: Tensor, generator: Generator) -> Tensor:
        sideways = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        sideways = unit_rows(sideways - (sideways * x).sum(1, keepdim=True) * x)
        return cosine * x + math.sqrt(1 - cosine**2) * sideways

    def sample(anchors: int, negatives: int, generator: Generator) -> Draw:
        x = unit(anchors, generator=generator)
        y = positives(x, generator)
        others = unit(anchors, negatives, generator=generator)
        products = torch.einsum("ad,amd->am", x, others)
        return Draw((x * y).sum(1), products, torch.full((anchors,), log_mu, dtype=x.dtype))

    generator = torch.Generator().manual_seed(1)
    x = unit(4000, generator=generator)
    two_terms = align_loss(x, positives(x, generator)) / (2 * tau) + uniform_loss(x, t)
    return Problem(sample, -cosine / tau + log_mu, two_terms.item())


def on_digits(tau: float, noise: float = 0.3) -> Problem:
    """Images of digits as their own features, positives by noise: the limit is a finite sum."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(1)
    pixels = torch.from_numpy(load_digits().data)
    pixels = (pixels - pixels.mean(0)) / pixels.std()
    x = unit_rows(pixels)
    y = unit_rows(pixels + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype))
    products = x @ x.T
    positive = (x * y).sum(1)
    log_mu = torch.logsumexp(products / tau, 1) - math.log(len(x))

    def sample(anchors: int, negatives: int, generator: Generator) -> Draw:
        rows = torch.randint(len(x), (anchors,), generator=generator)
        others = torch.randint(len(x), (anchors, negatives), generator=generator)
        return Draw(positive[rows], products[rows[:, None], others], log_mu[rows])

    two_terms = align_loss(x, y) / (2 * tau) + uniform_loss(x, 1 / (2 * tau), include_self=True)
    return Problem(sample, (log_mu - positive / tau).mean().item(), two_terms.item())


PROBLEMS = {"sphere": on_the_sphere, "digits": on_digits}


def measure(
    problem: Problem, tau: float, negatives: list[int], *, pairs: int = 2**22, seed: int = 0
) -> list[Point]:
    """Estimate the loss for each number of negatives from ``pairs`` inner products.

    Without the positive's share, a / mu - 1 has mean zero: subtracting it from each anchor's
    log(a / mu) keeps the expectation and removes most of the noise (a control variate).
    """
    generator = torch.Generator().manual_seed(seed)
    points = []
    for m in negatives:
        errors, absolute, left = [], [], max(pairs // m, 64)
        while left > 0:
            anchors = min(left, max(2**18 // m, 1))
            left -= anchors
            draw = problem.sample(anchors, m, generator)
            of_negatives = ((draw.negatives / tau) - draw.log_mu[:, None]).exp().mean(1)
            of_positive = (draw.positive / tau - draw.log_mu).exp() / m
            difference = (of_negatives + of_positive).log()
            errors.append(difference - (of_negatives - 1))
            absolute.append(difference.abs())
        error = torch.cat(errors).mean().item()
        points.append(Point(m, problem.limit + error, error, torch.cat(absolute).mean().item()))
    return points


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """SimCLR's loss: each row's positive is its other view, its negatives all other rows."""
    z = unit_rows(torch.cat([a, b]))
    logits = (z @ z.T / tau).fill_diagonal_(-math.inf)
    return cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def clustered_views(rows: int, dim: int = 64, clusters: int = 10) -> tuple[Tensor, Tensor]:
    """Two views of rows in clusters: cosines of about 0.7 in a cluster, 0.9 to the other view."""
    generator = torch.Generator().manual_seed(2)

    def near(points: Tensor, cosine: float) -> Tensor:
        noise = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        return unit_rows(cosine * points + math.sqrt(1 - cosine**2) * unit_rows(noise))

    centres = unit_rows(torch.randn(clusters, dim, generator=generator, dtype=torch.float64))
    a = near(centres[torch.arange(rows) % clusters], math.sqrt(0.7))
    return a, near(a, 0.9)


def gradient_agreement(loss: AlignUniformLoss, tau: float, rows: int) -> Agreement:
    """Compare the gradient of a loss with NT-Xent's on clustered rows, both views together."""
    gradients = []
    for function in (loss, lambda a, b: nt_xent(a, b, tau)):
        views = [view.requires_grad_() for view in clustered_views(rows)]
        gradients.append(torch.cat(torch.autograd.grad(function(*views), views)).flatten())
    ours, theirs = gradients
    cosine = torch.cosine_similarity(ours, theirs, dim=0).item()
    return Agreement(cosine, (ours.norm() / theirs.norm()).item())


def print_gradients(rows: list[int], temperatures: list[float]) -> None:
    """Print cosine and ratio of norms for each number of rows and each temperature."""
    print("gradients beside NT-Xent's, on rows in ten clusters")
    print(
        f"{'rows':>5} {'tau':>5} | from_temperature: cosine, ratio | default weights: cosine, ratio"
    )
    for n in rows:
        for tau in temperatures:
            ours = gradient_agreement(AlignUniformLoss.from_temperature(tau), tau, n)
            default = gradient_agreement(AlignUniformLoss(), tau, n)
            print(
                f"{n:>5} {tau:>5g} | {ours.cosine:>24.3f} {ours.ratio:>6.2f} "
                f"| {default.cosine:>23.3f} {default.ratio:>6.2f}"
            )
    print()


def proven_bound(negatives: int, tau: float) -> float:
    """The right-hand side of the inequality above."""
    high, low = math.exp(1 / tau), math.exp(-1 / tau)
    return high * (high / negatives + (high - low) / (2 * math.sqrt(negatives)))


def slope(points: list[Point], of: Callable[[Point], float]) -> float:
    """Exponent of M in a least-squares fit of the logarithms, over the larger half of the Ms."""
    larger = points[len(points) // 2 :]
    log_m = np.log([point.negatives for point in larger])
    return float(np.polyfit(log_m, np.log([of(point) for point in larger]), 1)[0])


def draw_figure(results: dict[str, tuple[Problem, list[Point]]], tau: float, path: Path) -> None:
    """Draw the loss and its limit on the left, the errors and the proven rate on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    for (name, (problem, points)), colour in zip(
        results.items(), ("#1b6ca8", "#e07a1f"), strict=False
    ):
        m = [point.negatives for point in points]
        axes[0].plot(m, [p.value for p in points], "o-", ms=4, color=colour, label=name)
        axes[0].axhline(problem.limit, color=colour, ls="--", lw=1)
        axes[1].plot(
            m,
            [p.absolute for p in points],
            "o-",
            ms=4,
            color=colour,
            label=f"{name}: mean absolute, slope {slope(points, lambda p: p.absolute):.2f}",
        )
        axes[1].plot(
            m,
            [abs(p.error) for p in points],
            "s:",
            ms=4,
            color=colour,
            label=f"{name}: of the loss, slope {slope(points, lambda p: abs(p.error)):.2f}",
        )
    axes[1].plot(
        m, [proven_bound(i, tau) for i in m], color="black", lw=1, label="proven, $O(M^{-1/2})$"
    )
    axes[0].set(
        xscale="log",
        xlabel="negatives M",
        ylabel="contrastive loss $-$ log M",
        title=f"The loss and its limit (dashed), $\\tau$ = {tau:g}",
    )
    axes[1].set(xscale="log", yscale="log", xlabel="negatives M", title="Distance from the limit")
    for ax in axes:
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tau", type=float, default=0.5)
    parser.add_argument(
        "--negatives", type=int, nargs="+", default=[2**k for k in range(4, 15)], metavar="M"
    )
    parser.add_argument("--pairs", type=int, default=2**22, help="inner products for each M")
    parser.add_argument("--out", type=Path, help="a PNG or SVG to draw")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[256, 2048], metavar="N", help="for the gradients"
    )
    args = parser.parse_args(argv)

    print_gradients(args.rows, [0.07, 0.1, 0.2, 0.5, 1.0])
    results = {}
    for name, make in PROBLEMS.items():
        problem = make(args.tau)
        points = measure(problem, args.tau, args.negatives, pairs=args.pairs)
        results[name] = problem, points
        print(f"{name}: limit {problem.limit:.5f}, the two terms {problem.two_terms:.5f}")
        print(f"{'M':>7} {'L - log M':>10} {'error':>9} {'mean absolute':>14} {'proven':>9}")
        for p in points:
            print(
                f"{p.negatives:>7} {p.value:>10.5f} {p.error:>9.1e} {p.absolute:>14.1e} "
                f"{proven_bound(p.negatives, args.tau):>9.1e}"
            )
        print(
            f"slopes: mean absolute {slope(points, lambda p: p.absolute):.3f}, "
            f"of the loss {slope(points, lambda p: abs(p.error)):.3f}\n"
        )
    if args.out:
        draw_figure(results, args.tau, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
