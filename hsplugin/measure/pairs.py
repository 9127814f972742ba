r"""Alignment over pairs that are listed or scored, and intervals for pairs that share rows.

Two pairs that share a row are not independent: the row is sampled once. The variance of the mean
over P pairs therefore adds the products of the residuals of every two pairs that share a row,

.. math:: \frac{1}{P^2} \Big(\sum_i s_i^2 - \sum_p e_p^2\Big),

where :math:`e_p` is the residual of pair p and :math:`s_i` the sum of those of row i's pairs.
Sources: Aronow, Samii & Assenova, "Cluster-robust variance estimation for dyadic data", Political
Analysis 2015; for two sides Cameron, Gelbach & Miller, "Robust inference with multiway
clustering", Journal of Business & Economic Statistics 2011.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hsplugin.errors import CommandError
from hsplugin.measure.estimates import Estimate, missing_value
from hsplugin.measure.geometry import (
    DISTANCE_BINS,
    Geometry,
    Options,
    count_distances,
    distances_of,
)
from hsplugin.metrics import Alignment
from hsplugin.metrics.sampling import Jackknifed


@dataclass(frozen=True, eq=False)
class PairMean:
    """Mean over pairs of rows, and its standard error by the module's formula.

    The error is at least that of independent pairs. A pair that is listed twice counts twice.

    Attributes:
        values: One value a pair, shape (P,).
        loops: Which pairs are of a row with itself, shape (P,).
        sums: Sum of the values of each row's pairs, shape (rows,).
        counts: How many pairs each row has, shape (rows,).
        groups: How many pairs there are, or rows on the smaller side if those are fewer.
    """

    values: np.ndarray
    loops: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    groups: int

    @cached_property
    def value(self) -> float:
        """The mean."""
        return float(self.values.mean())

    @property
    def unbiased(self) -> float:
        """The mean, which has no bias."""
        return self.value

    @cached_property
    @np.errstate(over="ignore", invalid="ignore")
    def error(self) -> float:
        """Standard error of the mean; NaN for a single pair or row, or if they are too large."""
        if self.groups < 2:
            return float("nan")
        residuals = self.values - self.value
        alone = np.square(residuals).sum()
        shared = np.square(self.sums - self.counts * self.value).sum()
        shared -= np.square(residuals[~self.loops]).sum()
        variance = max(alone, shared) * self.groups / (self.groups - 1)
        return float(variance**0.5 / len(self.values))

    def minus(self, other: PairMean) -> PairMean | Jackknifed:
        """The mean difference to the same pairs of other features."""
        if len(self.values) != len(other.values) or not np.array_equal(self.counts, other.counts):
            return Jackknifed.of_one(torch.tensor(self.value - other.value))
        return replace(self, values=self.values - other.values, sums=self.sums - other.sums)


class Pairs:
    """Pairs of rows that stream by, for their mean distance to the power alpha.

    Keeps 9 bytes a pair and 16 a row.

    Args:
        options: How to measure.
        sides: 2 if the pairs are of rows of two files, 1 if both rows are of one.
    """

    def __init__(self, options: Options, sides: int = 1) -> None:
        self.options = options
        self.distances = torch.zeros(DISTANCE_BINS)
        self._values: list[np.ndarray] = []
        self._loops: list[np.ndarray] = []
        self._sums = [np.zeros(0) for _ in range(sides)]
        self._counts = [np.zeros(0) for _ in range(sides)]

    def add(self, i: np.ndarray, j: np.ndarray, x: Tensor, y: Tensor) -> None:
        """Add pairs: the numbers of their rows, shape (P,), and the rows, shape (P, d)."""
        lengths = distances_of(x, y, self.options)
        self.distances += count_distances(lengths)
        values = lengths.double().cpu().numpy() ** self.options.alpha
        loops = (i == j) & (len(self._sums) == 1)
        self._values.append(values)
        self._loops.append(loops)
        for side, rows, mine in ((0, i, np.ones_like(loops)), (-1, j, ~loops)):
            self._sums[side] = _added(self._sums[side], rows[mine], values[mine])
            self._counts[side] = _added(self._counts[side], rows[mine], np.ones(mine.sum()))

    def alignment(self) -> Estimate:
        """Their alignment.

        Raises:
            CommandError: If there are no pairs.
        """
        values = np.concatenate([np.zeros(0), *self._values])
        if not len(values):
            raise CommandError("there are no pairs to measure; is --min-score too high?")
        independent = min(len(values), *(int((counts > 0).sum()) for counts in self._counts))
        mean = PairMean(
            values,
            np.concatenate(self._loops),
            np.concatenate(self._sums),
            np.concatenate(self._counts),
            independent,
        )
        metric = Alignment(self.options.alpha, normalize=self.options.normalize)
        confidence = self.options.confidence if self.options.intervals else None
        note = f"{metric.note}; over {len(values)} pairs"
        bounds, missing = metric.bounds(len(values), 1), missing_value(mean.value)
        return Estimate.of(mean, bounds, confidence, note, missing)


def _added(totals: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    # Without any rows numpy counts in integers.
    more = np.bincount(rows, values, len(totals)).astype(np.float64)
    more[: len(totals)] += totals
    return more


def with_pairs(geometry: Geometry, pairs: Pairs) -> Geometry:
    """The geometry of rows, with the alignment of pairs of them."""
    metrics = {"alignment": pairs.alignment(), **geometry.metrics}
    return replace(geometry, metrics=metrics, distances=pairs.distances)
