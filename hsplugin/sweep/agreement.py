"""How well a metric ranks encoders by their accuracy, with bootstrap intervals.

The paper plots alignment and uniformity against accuracy; these are the rank correlations of such
a plot, and a test of its claim that needs no weight between the two metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic over encoders with its bootstrap interval.

    Attributes:
        value: The statistic; NaN where it is not defined, as for a metric that is constant.
        low: Lower end of the 95 % percentile interval over resampled encoders.
        high: Upper end.
        encoders: How many encoders it covers.
    """

    value: float
    low: float
    high: float
    encoders: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's rank correlation of each row of x with that of y, both (samples, n).

    Row by row for all resamples at once; `scipy.stats.spearmanr` and `kendalltau` take one.
    """
    from scipy.stats import rankdata

    a, b = rankdata(x, axis=1), rankdata(y, axis=1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def kendall(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b of each row of x with that of y, both (samples, n)."""
    i, j = np.triu_indices(x.shape[1], 1)
    a, b = np.sign(x[:, i] - x[:, j]), np.sign(y[:, i] - y[:, j])
    return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))


# Name -> (title, coefficient).
STATISTICS = {"spearman": ("Spearman's rho", spearman), "kendall": ("Kendall's tau-b", kendall)}


def dominance(first: Floats, second: Floats, accuracy: Floats) -> Floats:
    """Share of pairs in which the encoder that is lower in both metrics is the more accurate one.

    The paper's "lower left is better", over the pairs that both metrics order alike: 1 if always,
    0.5 for chance. Equal accuracies count as half. Each argument is (samples, n).
    """
    i, j = np.triu_indices(first.shape[1], 1)
    a, b, c = (np.sign(values[:, i] - values[:, j]) for values in (first, second, accuracy))
    ordered = (a * b) > 0
    won = ordered * (1 - a * c) / 2
    return _ratio(won.sum(1), ordered.sum(1).astype(np.float64))


def lost(signed: Floats, by_labels: Floats, accuracy: Floats) -> Floats:
    """Accuracy lost by choosing the encoder with the most of a metric, not the best by labels.

    Below zero where the metric's choice is the better one on test images. Each argument is
    (samples, n).

    Args:
        signed: The metric, times its expected sign.
        by_labels: Accuracy on validation images; its highest is the choice by labels.
        accuracy: Accuracy on test images.
    """
    rows = np.arange(len(accuracy))
    return accuracy[rows, by_labels.argmax(1)] - accuracy[rows, signed.argmax(1)]


def lost_at_random(by_labels: Floats, accuracy: Floats) -> Floats:
    """The same of a choice at random, in the mean: what `lost` must be below to be of use."""
    return accuracy[np.arange(len(accuracy)), by_labels.argmax(1)] - accuracy.mean(1)


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def estimate(
    statistic: Callable[..., Floats], *columns: Sequence[float], seed: int = 0
) -> Estimate:
    """A statistic over encoders, with its bootstrap interval.

    Whole encoders are drawn with replacement. Encoders with a value that is not finite are left
    out, and so are resamples in which the statistic is not defined.

    Args:
        statistic: One of the functions above.
        *columns: Its arguments, each with one value per encoder.
        seed: Seed of the resampling.
    """
    table = np.array(columns, dtype=np.float64)
    table = table[:, np.isfinite(table).all(0)]
    encoders = table.shape[1]
    if encoders < 3:
        return Estimate(np.nan, np.nan, np.nan, encoders)
    value = float(statistic(*table[:, None, :])[0])
    draws = np.random.default_rng(seed).integers(encoders, size=(RESAMPLES, encoders))
    # Not scipy.stats.bootstrap, whose interval is NaN as soon as one resample is. In parts, because
    # Kendall's tau compares n (n - 1) / 2 pairs of each sample.
    part = max(1, 4_000_000 // encoders**2)
    values = np.concatenate(
        [
            statistic(*(column[draws[start : start + part]] for column in table))
            for start in range(0, RESAMPLES, part)
        ]
    )
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(value, np.nan, np.nan, encoders)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), encoders)
