"""Estimates of a population's geometry, their confidence intervals, and their differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

try:
    from scipy.stats import t as student_t
except ImportError as error:
    raise ImportError("intervals need scipy: pip install 'hsplugin[measure]'") from error


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

    The interval lies around the value with its bias taken out, which for ranks and spectra of few
    rows is far from the value. It is None where there is none: without the jackknife, and for
    spectral metrics of fewer than ten rows a dimension. If the spectrum is almost flat, those of
    ``alpha_req`` and ``nesum`` are too narrow, as their bias is not of order 1/N.

    Attributes:
        value: The metric of all rows.
        interval: Lower and upper end, or None.
        note: How to read the value.
        missing: Why there is no interval, where more rows would give one.
        spread: What intervals are made of, those of differences too.
        bounds: The smallest and the largest possible value.
    """

    value: float
    interval: tuple[float, float] | None
    note: str
    missing: str = ""
    spread: Spread | None = field(default=None, repr=False, compare=False)
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def minus(self, other: Estimate, confidence: float) -> Estimate:
        """The difference to the estimate of other features, with an interval if both have one."""
        value = self.value - other.value
        if not (self.interval and other.interval and self.spread and other.spread):
            return Estimate(value, None, "")
        bounds = self.bounds[0] - other.bounds[1], self.bounds[1] - other.bounds[0]
        spread = self.spread.minus(other.spread)
        return Estimate(value, interval(spread, bounds, confidence), "", "", spread, bounds)


def interval(
    spread: Spread, bounds: tuple[float, float], confidence: float
) -> tuple[float, float] | None:
    """Student's interval within the bounds, or None if the error is unknown."""
    if not (math.isfinite(spread.unbiased) and math.isfinite(spread.error)):
        return None
    half = float(student_t.ppf((1 + confidence) / 2, spread.groups - 1)) * spread.error
    low, high = (min(max(spread.unbiased + end, bounds[0]), bounds[1]) for end in (-half, half))
    return low, high
