"""Estimates of a population's geometry, their confidence intervals, and their differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from hsplugin.metrics.jackknife import FOLDS

try:
    from scipy.stats import t as student_t
except ImportError as error:
    raise ImportError("intervals need scipy: pip install 'hsplugin[measure]'") from error


# Half of the last decimal of a report.
SHOWN = 5e-5
# How many times a bias that falls with 1 / sqrt(N) exceeds what is told if it falls with 1 / N.
SLOW_BIAS = 1 + (FOLDS / (FOLDS - 1)) ** 0.5


def missing_value(value: float) -> str:
    """Why there is no value, if it is not finite."""
    return "" if math.isfinite(value) else "features are too large for it"


class Spread(Protocol):
    """An estimate with its standard error, and that of its difference to another one."""

    @property
    def value(self) -> float:
        """The value of all rows."""

    @property
    def unbiased(self) -> float:
        """The value with its bias taken out; NaN if it is unknown."""

    @property
    def error(self) -> float:
        """Standard error of ``unbiased``; NaN if it is unknown."""

    @property
    def groups(self) -> int:
        """From how many independent parts the error is known."""

    def minus(self, other: Any) -> Spread:
        """The spread of the difference to the same statistic of other features."""


@dataclass(frozen=True)
class Estimate:
    """A metric of the rows, with a confidence interval for that of their population.

    A metric that is not linear is biased: ranks of few rows are too low. The interval is that of
    the grouped jackknife around the value without its bias of order 1/N, extended to the value
    itself, and cut to the metric's range. So it holds both, and covers the population's metric at
    least as often as the jackknife's own. For metrics of single eigenvalues it is also extended to
    the value without a bias of order 1 / sqrt(N), which they have if eigenvalues are equal. There
    is none without the jackknife, and for spectral metrics of fewer than ten rows a dimension.
    Measured coverage is in examples/docs/intervals.md.

    Attributes:
        value: The metric of all rows.
        interval: Lower and upper end, or None.
        note: How to read the value.
        missing: Why there is no interval, or no value, if other features would give one.
        unbiased: The estimate of the population's metric, the value without its bias; None where
            there is no interval.
        spread: What the interval is made of, and those of differences.
        bounds: The smallest and the largest possible value.
        slow_bias: Whether its bias may fall with 1 / sqrt(N).
    """

    value: float
    interval: tuple[float, float] | None
    note: str
    missing: str = ""
    unbiased: float | None = None
    spread: Spread | None = field(default=None, repr=False, compare=False)
    bounds: tuple[float, float] = (-math.inf, math.inf)
    slow_bias: bool = False

    @classmethod
    def of(
        cls,
        spread: Spread,
        bounds: tuple[float, float],
        confidence: float | None,
        note: str = "",
        missing: str = "",
        *,
        slow_bias: bool = False,
    ) -> Estimate:
        """An estimate from its spread; without an interval if there is no level of confidence."""
        known = math.isfinite(spread.unbiased) and math.isfinite(spread.error)
        if confidence is None or not known:
            return cls(spread.value, None, note, missing, bounds=bounds)
        half = float(student_t.isf((1 - confidence) / 2, spread.groups - 1)) * spread.error
        bias = spread.value - spread.unbiased
        centres = (
            spread.unbiased,
            spread.value - bias * SLOW_BIAS if slow_bias else spread.unbiased,
        )
        low, unbiased, high = (
            min(max(estimate, bounds[0]), bounds[1])
            for estimate in (min(centres) - half, spread.unbiased, max(centres) + half)
        )
        if abs(bias) > max(half, SHOWN):
            note = "; ".join(filter(None, [note, f"{unbiased:.4f} without the bias of few rows"]))
        ends = min(low, spread.value), max(high, spread.value)
        return cls(spread.value, ends, note, missing, unbiased, spread, bounds, slow_bias)

    def minus(self, other: Estimate, confidence: float) -> Estimate:
        """The difference to the estimate of other features, with an interval if both have one."""
        if self.spread is None or other.spread is None:
            return Estimate(self.value - other.value, None, "")
        bounds = self.bounds[0] - other.bounds[1], self.bounds[1] - other.bounds[0]
        spread = self.spread.minus(other.spread)
        return Estimate.of(spread, bounds, confidence, slow_bias=self.slow_bias)
