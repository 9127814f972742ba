"""Spectra of features, and the metrics that are read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features
from hsplugin.functional import power_of_length
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.directions import directions
from hsplugin.metrics.packing import merge_moments, pack_moments


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of N features of dimension d; each spectrum is computed once.

    Attributes:
        rows: N, a float64 scalar.
        mean: Mean of the features over ``scale``, shape (d,).
        scatter: Sum of outer products of the centred features over ``scale``, shape (d, d).
        scale: A power of two by which the features are divided; 1 in all but extreme cases.
    """

    rows: Tensor
    mean: Tensor
    scatter: Tensor
    scale: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """Read what :func:`hsplugin.metrics.packing.pack_moments` wrote."""
        return cls(packed[0, 0], packed[0, 1:], packed[1:, 1:], packed[1, 0].exp2())

    @cached_property
    def covariance_spectrum(self) -> Tensor:
        """Eigenvalues of the covariance of features over ``scale``, descending, shape (d,).

        Those within the rounding error of their computation are set to zero, so that a collapsed
        or rank-deficient representation shows zeros and not noise.
        """
        spectrum = torch.linalg.eigvalsh(self.scatter / self.rows).flip(0).clamp(min=0)
        rounding = len(spectrum) * torch.finfo(torch.float64).eps
        floor = torch.maximum(
            rounding * spectrum[0], rounding**2 * (self.mean.square().sum() + spectrum.sum())
        )
        return torch.where(spectrum > floor, spectrum, 0.0)

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values of the features over ``scale``, descending, from X^T X's eigenvalues.

        The root halves the digits: values below 1e-8 of the largest are rounding noise, and set to
        zero.
        """
        gram = self.scatter + self.rows * torch.outer(self.mean, self.mean)
        spectrum = torch.linalg.eigvalsh(gram).flip(0)[: min(int(self.rows.detach()), len(gram))]
        noise = torch.finfo(torch.float64).eps * spectrum[0]
        return power_of_length(torch.where(spectrum > noise, spectrum, 0.0), 1.0)


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


class MomentMetric(GeometryMetric):
    """Base of the metrics over moments: (d + 1)^2 float64 numbers, however many rows are seen.

    In a :class:`torchmetrics.MetricCollection` those that take the features as they are share one
    update.
    """

    needs_matrix = True
    note = "of {dim}, more is better"
    moments: Tensor

    _normalize: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)

    def update(self, features: Tensor) -> None:
        """Add features.

        Args:
            features: Shape (N, d), of any floating dtype, N >= 1.

        Raises:
            TypeError: If features is no floating-point tensor.
            ValueError: If its shape is wrong or d differs from that of earlier calls.
        """
        self._add(features)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to d."""
        return 0.0, float(dim)

    def _check(self, features: Tensor, *, min_rows: int = 1) -> None:
        check_features("features", features, min_rows=min_rows)

    def _measure(self, features: Tensor) -> dict[str, Tensor]:
        x = directions(features) if self._normalize else features
        return {"moments": pack_moments(x), **self._count(features)}

    def _dim(self, states: States) -> int:
        return len(states["moments"]) - 1

    def _shared(self, states: States) -> Moments:
        return Moments.unpack(states["moments"])

    def _family(self) -> tuple[Any, ...]:
        return ("moments", self._normalize)


class RankMetric(MomentMetric):
    """Base of the metrics that count dimensions, and so see a dimensional collapse."""

    higher_is_better = True

    def collapse(self, value: float, dim: int) -> str:
        """A rank below two, or below a hundredth of the dimensions."""
        if value < min(dim, max(2.0, 0.01 * dim)) < dim:
            return f"{self.name} is {value:.2f} of {dim} dimensions"
        return ""
