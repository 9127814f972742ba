"""First and second moments of features, and the metrics that are read off their spectra.

One float64 matrix holds the moments, so that they can be merged over batches and ranks in any
order by the stable pairwise formula (Chan, Golub & LeVeque 1983). Raw sums of squares would cancel
when the mean is large beside the spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features
from hsplugin.functional import unit_rows
from hsplugin.metrics.base import GeometryMetric, States


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of N features of dimension d; each spectrum is computed once.

    Attributes:
        rows: N, a float64 scalar.
        mean: Mean of the features, shape (d,).
        scatter: Sum of outer products of the centred features, shape (d, d).
    """

    rows: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """Read what :func:`pack_moments` wrote."""
        return cls(packed[0, 0], packed[0, 1:], packed[1:, 1:])

    @cached_property
    def covariance_spectrum(self) -> Tensor:
        """Eigenvalues of the covariance (divided by N), in descending order, shape (d,).

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
        """Singular values of the uncentred features, descending, from the eigenvalues of X^T X.

        The root halves the digits: values below 1e-8 of the largest are rounding noise.
        """
        gram = self.scatter + self.rows * torch.outer(self.mean, self.mean)
        spectrum = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
        rank = min(int(self.rows), len(spectrum))
        return spectrum[:rank].sqrt()


def pack_moments(features: Tensor) -> Tensor:
    """Moments of features (N, d) as one (d + 1, d + 1) float64 matrix: count, mean, scatter."""
    x = features.to(torch.float64)
    mean = x.mean(dim=0)
    centred = x - mean
    packed = x.new_zeros(x.shape[1] + 1, x.shape[1] + 1)
    packed[0, 0] = len(x)
    packed[0, 1:] = mean
    packed[1:, 1:].addmm_(centred.T, centred)
    return packed


def merge_moments(parts: Sequence[Tensor] | Tensor) -> Tensor:
    """Moments of all features together from those of parts, each (d + 1, d + 1).

    A part of shape (1, 1) has seen no features.
    """
    known = [part for part in parts if len(part) > 1]
    if len(known) < 2:
        return known[0] if known else parts[0]
    heads = torch.stack([part[0] for part in known])
    counts, means = heads[:, 0], heads[:, 1:]
    total = counts.sum()
    mean = (counts[:, None] * means).sum(dim=0) / total.clamp(min=1)
    apart = (means - mean) * counts.sqrt()[:, None]
    merged = known[0] + known[1]
    for part in known[2:]:
        merged += part
    merged[1:, 1:].addmm_(apart.T, apart)
    merged[0, 0] = total
    merged[0, 1:] = mean
    return merged


def entropy_rank(weights: Tensor, epsilon: float = 0.0) -> Tensor:
    """exp(-sum p log p) of p = weights / sum(weights) + epsilon; zero if all weights are zero."""
    total = weights.sum()
    p = weights / torch.where(total > 0, total, 1.0) + epsilon
    return torch.where(total > 0, torch.special.entr(p).sum().exp(), 0.0)


def largest_entropy_rank(rank: int, entries: int, epsilon: float) -> float:
    """The most that :func:`entropy_rank` can be, where ``rank`` of the entries are not zero."""
    return rank * math.exp(-entries * epsilon * math.log(epsilon))


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
        x = unit_rows(features) if self._normalize else features
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
