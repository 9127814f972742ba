"""Spectra of features, and the metrics that are read off them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from hsplugin.checks import check_features
from hsplugin.functional import power_of_length
from hsplugin.metrics.base import States
from hsplugin.metrics.directions import directions
from hsplugin.metrics.inputs import TakesFeatures
from hsplugin.metrics.packing import in_range, merge_moments, pack_moments


@dataclass(frozen=True, eq=False)
class Spectra(ABC):
    """Spectra of N features of dimension d, over ``scale``; each is computed once.

    Attributes:
        rows: N, a float64 scalar.
        scatter: A symmetric matrix with the non-zero eigenvalues of the sum of outer products of
            the centred features over ``scale``.
        scale: A power of two by which the features are divided; 1 in all but extreme cases.
    """

    rows: Tensor
    scatter: Tensor
    scale: Tensor

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the features."""

    @property
    @abstractmethod
    def mean_square(self) -> Tensor:
        """Squared length of the mean of the features over ``scale``."""

    @abstractmethod
    def products(self) -> Tensor:
        """What ``scatter`` is, of the features that are not centred."""

    @cached_property
    def covariance_spectrum(self) -> Tensor:
        """Eigenvalues of the covariance of features over ``scale``, descending, shape (d,).

        Those within the rounding error of their computation are set to zero, so that a collapsed
        or rank-deficient representation shows zeros and not noise.
        """
        spectrum = torch.linalg.eigvalsh(self.scatter / self.rows).flip(0).clamp(min=0)
        rounding = max(len(spectrum), self.dim) * torch.finfo(torch.float64).eps
        floor = torch.maximum(
            rounding * spectrum[0], rounding**2 * (self.mean_square + spectrum.sum())
        )
        return pad(torch.where(spectrum > floor, spectrum, 0.0), (0, self.dim - len(spectrum)))

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values of the features over ``scale``, descending, from products' eigenvalues.

        The root halves the digits: values below 1e-8 of the largest are rounding noise, and set to
        zero.
        """
        spectrum = torch.linalg.eigvalsh(self.products()).flip(0)
        spectrum = spectrum[: min(int(self.rows.detach()), self.dim)]
        noise = torch.finfo(torch.float64).eps * spectrum[0]
        return power_of_length(torch.where(spectrum > noise, spectrum, 0.0), 1.0)


@dataclass(frozen=True, eq=False)
class Moments(Spectra):
    """Spectra from first and second moments: d x d matrices, however many features there are.

    Attributes:
        mean: Mean of the features over ``scale``, shape (d,).
    """

    mean: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """Read what :func:`hsplugin.metrics.packing.pack_moments` wrote."""
        return cls(packed[0, 0], packed[1:, 1:], packed[1, 0].exp2(), packed[0, 1:])

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return len(self.mean)

    @property
    def mean_square(self) -> Tensor:
        """Squared length of the mean of the features over ``scale``."""
        return self.mean.square().sum()

    def products(self) -> Tensor:
        """The sum of outer products of the features over ``scale``."""
        return self.scatter + self.rows * torch.outer(self.mean, self.mean)


@dataclass(frozen=True, eq=False)
class Gram(Spectra):
    """Spectra from the inner products of the rows: N x N matrices, however wide the features are.

    Attributes:
        width: Dimension of the features.
        along_mean: Inner products of the centred features with their mean, over ``scale`` squared.
        square: Squared length of the mean over ``scale``.
    """

    width: int
    along_mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gram:
        """The inner products of features (N, d)."""
        x, exponent = in_range(features)
        mean = x.mean(dim=0)
        centred = x - mean
        rows = x.new_full((), len(x))
        scatter = centred @ centred.T
        return cls(rows, scatter, exponent.exp2(), x.shape[1], centred @ mean, mean @ mean)

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return self.width

    @property
    def mean_square(self) -> Tensor:
        """Squared length of the mean of the features over ``scale``."""
        return self.square

    def products(self) -> Tensor:
        """The inner products of the features over ``scale``."""
        return self.scatter + self.along_mean + self.along_mean[:, None] + self.square


def gaussian_rank(rows: int, dim: int, power: float = 1.0) -> float:
    """The :func:`entropy_rank` of singular values to a power that Gaussian rows have, about.

    For independent standard Gaussian entries, from the law of Marchenko & Pastur, whose
    eigenvalues are 1 + c + 2 sqrt(c) cos(angle) for c = min(N, d) / max(N, d).
    """
    least, most = sorted((rows, dim))
    c = least / most
    angle = (torch.arange(10_000, dtype=torch.float64) + 0.5) * math.pi / 10_000
    eigenvalues = 1 + c + 2 * c**0.5 * angle.cos()
    density = angle.sin().square() / eigenvalues
    density = density / density.sum()
    weights = eigenvalues ** (power / 2)
    p = weights / (density @ weights)
    return least * math.exp(-float(density @ torch.special.xlogy(p, p)))


def entropy_rank(weights: Tensor, epsilon: float = 0.0) -> Tensor:
    """exp(-sum p log p) of p = weights / sum(weights) + epsilon; zero if all weights are zero."""
    total = weights.sum()
    p = weights / torch.where(total > 0, total, 1.0) + epsilon
    # One has the entropy of zero and, other than zero, a finite derivative.
    entropy = torch.special.entr(torch.where(p > 0, p, 1.0)).sum()
    return torch.where(total > 0, entropy.exp(), 0.0)


def largest_entropy_rank(rank: int, entries: int, epsilon: float) -> float:
    """The most that :func:`entropy_rank` can be: that of ``rank`` equal entries, others zero."""
    p = 1 / rank + epsilon
    return math.exp(-rank * p * math.log(p) - (entries - rank) * epsilon * math.log(epsilon))


class MomentMetric(TakesFeatures):
    """Base of the metrics over moments: (d + 1)^2 float64 numbers, however many rows are seen.

    In a :class:`torchmetrics.MetricCollection` those that take the features as they are share one
    update.
    """

    needs_matrix = True
    note = "of {most}, more is better"
    moments: Tensor

    _normalize: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to d."""
        return 0.0, float(dim)

    def _check(self, features: Tensor, *, min_rows: int = 1) -> None:
        check_features("features", features, min_rows=min_rows)

    def _measure(self, features: Tensor) -> dict[str, Tensor]:
        return {"moments": pack_moments(self._points(features)), **self._count(features)}

    def _evaluate(self, features: Tensor) -> Tensor:
        return self._value(self._spectra(features))

    def _spectra(self, features: Tensor) -> Spectra:
        return spectra_of(self._points(features))

    def _points(self, features: Tensor) -> Tensor:
        return directions(features) if self._normalize else features

    def _dim(self, states: States) -> int:
        return len(states["moments"]) - 1

    def _shared(self, states: States) -> Spectra:
        return Moments.unpack(states["moments"])

    def _family(self) -> tuple[Any, ...]:
        return ("moments", self._normalize)


def spectra_of(features: Tensor) -> Spectra:
    """The spectra of features (N, d), from the smaller of the two matrices that have them."""
    if len(features) < features.shape[1]:
        return Gram.of(features)
    return Moments.unpack(pack_moments(features))


def covariance_spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of features (N, d), descending, shape (d,)."""
    spectra = spectra_of(features)
    return spectra.covariance_spectrum * spectra.scale**2


def values_of_rows(metrics: Mapping[str, MomentMetric], features: Tensor) -> dict[str, Tensor]:
    """Each metric of features (N, d) that are all there; a spectrum is computed once for all.

    Raises:
        ValueError: If there are fewer rows than a metric takes.
        OverflowError: As the metrics' ``compute``.
    """
    spectra: dict[Any, Spectra] = {}
    values = {}
    for name, metric in metrics.items():
        metric._check(features, min_rows=metric.least_rows)
        if metric._normalize not in spectra:
            spectra[metric._normalize] = metric._spectra(features)
        values[name] = metric._representable(metric._value(spectra[metric._normalize]))
    return values


class RankMetric(MomentMetric):
    """Base of the metrics that count dimensions, and so see a dimensional collapse.

    Attributes:
        power: Of the singular values, as which directions count.
    """

    higher_is_better = True
    power: ClassVar[float]

    def describe(self, rows: int, dim: int) -> str:
        """The most there can be, and what fewer rows than suffice for it would have at best."""
        note, expected = super().describe(rows, dim), gaussian_rank(rows, dim, self.power)
        if expected > 0.95 * dim:
            return note
        return f"{note}; {rows} Gaussian rows in {dim} dimensions have {expected:.1f}"

    def collapse(self, value: float, rows: int, dim: int) -> str:
        """A rank below two, or below a hundredth of that of as many Gaussian rows."""
        most = min(rows, dim)
        if value < min(most, max(2.0, 0.01 * gaussian_rank(rows, dim, self.power))) < most:
            return f"{self.name} is {value:.2f} of {dim} dimensions, from {rows} rows"
        return ""
