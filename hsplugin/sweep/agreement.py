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


def spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Spearman's rank correlation of two metrics in each sample, with mean ranks for ties."""
    a, b = _centred_ranks(x, counts), _centred_ranks(y, counts)
    return _ratio(
        (counts * a * b).sum(1), np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    )


def kendall(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Kendall's tau-b of two metrics in each sample."""
    a, b = _signs(x), _signs(y)
    norms = _over_pairs(a * a, counts) * _over_pairs(b * b, counts)
    return _ratio(_over_pairs(a * b, counts), np.sqrt(norms))


# Name -> (title, coefficient).
STATISTICS = {"spearman": ("Spearman's rho", spearman), "kendall": ("Kendall's tau-b", kendall)}


def dominance(first: Floats, second: Floats, accuracy: Floats, counts: Floats) -> Floats:
    """Share of pairs in which the encoder that is lower in both metrics is the more accurate one.

    The paper's "lower left is better", over the pairs that both metrics order alike: 1 if always,
    0.5 for chance. Equal accuracies count as half.
    """
    a, b, c = _signs(first), _signs(second), _signs(accuracy)
    ordered = (a * b > 0).astype(np.float64)
    return _ratio(_over_pairs(ordered * (1 - a * c) / 2, counts), _over_pairs(ordered, counts))


def lost(signed: Floats, by_labels: Floats, accuracy: Floats, counts: Floats) -> Floats:
    """Accuracy lost by choosing the encoder with the most of a metric, not the best by labels.

    Below zero where the metric's choice is the better one on test images.

    Args:
        signed: The metric, times its expected sign.
        by_labels: Accuracy on validation images; its highest is the choice by labels.
        accuracy: Accuracy on test images.
        counts: How often each sample holds each encoder.
    """
    best, chosen = (
        accuracy[np.where(counts > 0, values, -np.inf).argmax(1)] for values in (by_labels, signed)
    )
    return best - chosen


def lost_at_random(by_labels: Floats, accuracy: Floats, counts: Floats) -> Floats:
    """The same of a choice at random, in the mean: what `lost` must be below to be of use."""
    best = accuracy[np.where(counts > 0, by_labels, -np.inf).argmax(1)]
    return best - counts @ accuracy / counts.sum(1)


def _signs(values: Floats) -> Floats:
    return np.sign(values[:, None] - values)


def _over_pairs(of_pairs: Floats, counts: Floats) -> Floats:
    """Twice the sum over the pairs of each sample, which counts equal encoders as no pair."""
    return ((counts @ of_pairs) * counts).sum(1)


def _centred_ranks(values: Floats, counts: Floats) -> Floats:
    # Twice the distance from the middle rank is how many are below less how many are above.
    return counts @ _signs(values).T / 2


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
    value = float(statistic(*table, np.ones((1, encoders)))[0])
    # Not scipy.stats.bootstrap, whose interval is NaN as soon as one resample is.
    draws = np.random.default_rng(seed).multinomial(
        encoders, np.full(encoders, 1 / encoders), size=RESAMPLES
    )
    values = statistic(*table, draws.astype(np.float64))
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(value, np.nan, np.nan, encoders)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), encoders)
