"""How often do the intervals of ``hsplugin measure`` hold the population's metric?

Draws many samples from populations whose metrics are known from a sample of 200,000 rows, measures
each with its 95 % intervals, and counts. Prints the table of examples/docs/intervals.md:

    python examples/interval_coverage.py --simulations 400
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np

from hsplugin.measure import geometry
from hsplugin.readers import Array

ROWS_OF_TRUTH = 200_000
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def population(deviations: np.ndarray, *, mean: float = 0.0, classes: int = 3) -> Draw:
    """Gaussian classes on a Gaussian background, with a second, noisier view of each row."""
    dim = len(deviations)

    def draw(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = random.integers(0, classes, rows)
        centres = np.eye(classes, dim) * (0.5 * deviations)
        x = random.normal(size=(rows, dim)) * deviations + mean + centres[labels]
        return x, x + 0.3 * random.normal(size=x.shape) * deviations, labels

    return draw


def decaying(dim: int) -> np.ndarray:
    """Standard deviations of directions whose variances fall as 1 / k."""
    return np.arange(1, dim + 1) ** -0.5


POPULATIONS: dict[str, tuple[Draw, int, int]] = {
    "decaying, 600 x 12": (population(decaying(12), mean=0.3), 600, 12),
    "decaying, 400 x 40": (population(decaying(40), mean=0.1), 400, 40),
    "decaying, 4000 x 40": (population(decaying(40), mean=0.1), 4000, 40),
    "flat, 600 x 12": (population(np.ones(12)), 600, 12),
    "flat, 4000 x 40": (population(np.ones(40)), 4000, 40),
}


def chunks_of(values: np.ndarray) -> Callable[[int], Iterator[np.ndarray]]:
    """The rows of an array in chunks, as a reader of files gives them."""
    return lambda rows: (values[i : i + rows] for i in range(0, len(values), rows))


def measured(
    sample: tuple[np.ndarray, np.ndarray, np.ndarray], dim: int, *, intervals: bool
) -> dict[str, geometry.Estimate]:
    """Every metric of a sample of features, their second view and their labels."""
    arrays = [
        Array(name, len(values), values.shape[1:], chunks_of(values))
        for name, values in zip(("features", "positives", "labels"), sample, strict=True)
    ]
    options = geometry.Options(fit_range=(2, dim), intervals=intervals, max_samples=20_000)
    return geometry.measure(*arrays, options).metrics


def coverage(draw: Draw, rows: int, dim: int, simulations: int) -> dict[str, tuple[float, float]]:
    """By metric: the share of intervals that hold the truth, and mean bias over standard error.

    The second says how far the plain value lies from the truth on average, in its own standard
    deviations over the samples.
    """
    random = np.random.default_rng(0)
    truth = measured(draw(random, ROWS_OF_TRUTH), dim, intervals=False)
    held: dict[str, list[bool]] = {name: [] for name in truth}
    values: dict[str, list[float]] = {name: [] for name in truth}
    for _ in range(simulations):
        found = measured(draw(random, rows), dim, intervals=True)
        for name, of_all in truth.items():
            interval = found[name].interval
            if interval is not None:
                held[name].append(interval[0] <= of_all.value <= interval[1])
                values[name].append(found[name].value)
    return {
        name: (
            float(np.mean(held[name])) if held[name] else math.nan,
            (float(np.mean(values[name])) - truth[name].value) / float(np.std(values[name])),
        )
        for name in truth
        if held[name]
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=[*POPULATIONS])
    args = parser.parse_args()
    print("| population, rows x dimensions | metric | intervals that hold it | bias / spread |")
    print("| --- | --- | ---: | ---: |")
    for name in args.populations:
        for metric, (share, bias) in coverage(*POPULATIONS[name], args.simulations).items():
            print(f"| {name} | {metric} | {share:.1%} | {bias:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
