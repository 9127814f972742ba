"""Fair samples without random state, and what groups of rows tell about an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hsplugin.potential import log_mean_potential

# With G groups the standard error is itself known to a relative 1 / sqrt(2 (G - 1)), here 18 %.
GROUPS = 16
_GOLDEN = 0x9E3779B97F4A7C15


class Jackknifed(NamedTuple):
    """A metric of all rows, and what groups of them tell about its population.

    Attributes:
        value: The metric of all rows.
        unbiased: The value with its bias of order 1/N taken out; NaN where there is no estimate.
        error: Standard error of ``unbiased``; NaN where there is no estimate.
        groups: How many groups the estimate rests on.
        deviations: What each group adds to the error, shape (groups,): its root sum of squares.
    """

    value: float
    unbiased: float
    error: float
    groups: int
    deviations: Tensor

    @classmethod
    def of_one(cls, value: Tensor) -> Jackknifed:
        """A value without estimates."""
        return cls(float(value), math.nan, math.nan, 1, torch.full((1,), math.nan))

    @classmethod
    def of_groups(cls, value: Tensor, unbiased: Tensor, deviations: Tensor) -> Jackknifed:
        """A value whose error is the root sum of squares of what each group adds to it."""
        error = float(deviations.square().sum().sqrt())
        return cls(float(value), float(unbiased), error, len(deviations), deviations)

    def minus(self, other: Jackknifed) -> Jackknifed:
        """The difference to the same metric of other features.

        If row i of both is the same sample, a group holds the same samples of both, and what they
        share cancels. The error of independent samples is right too: groups are dealt at random.
        """
        value = torch.tensor(self.value - other.value, dtype=torch.float64)
        if self.groups != other.groups:
            return Jackknifed.of_one(value)
        unbiased = torch.tensor(self.unbiased - other.unbiased, dtype=torch.float64)
        return Jackknifed.of_groups(value, unbiased, self.deviations - other.deviations)


def jackknife(value: Tensor, without: Tensor) -> Jackknifed:
    """The jackknife of Quenouille and Tukey, over groups of rows.

    Args:
        value: The metric of all rows, a scalar.
        without: The metric without each of G groups, shape (G,).
    """
    groups = len(without)
    if groups < 2:
        return Jackknifed.of_one(value)
    unbiased = groups * value - (groups - 1) * without.mean()
    deviations = ((groups - 1) / groups) ** 0.5 * (without.mean() - without)
    return Jackknifed.of_groups(value, unbiased, deviations.cpu())


def infinitesimal_jackknife(
    value: Tensor, by_weight: Tensor, without: Tensor, shares: Tensor
) -> Jackknifed:
    """The jackknife with its error to first order, and its bias from fewer, larger folds.

    The error needs only derivatives at the metric of all rows, where the plain jackknife takes a
    metric, such as an eigenvalue problem, a group. For a mean both are the same.

    Source: Jaeckel, "The infinitesimal jackknife", Bell Laboratories 1972, for the error; Busing et
    al., "Delete-m jackknife for unequal m", Statistics and Computing 1999, for the bias.

    Args:
        value: The metric of all rows, a scalar.
        by_weight: Its derivative by the weight of each of G groups, shape (G,).
        without: The metric without each of K folds of groups, shape (K,).
        shares: The share of the rows that each fold holds, shape (K,).
    """
    groups = len(by_weight)
    unbiased = len(without) * value - ((1 - shares) * without).sum()
    deviations = (groups / (groups - 1)) ** 0.5 * (by_weight - by_weight.mean())
    return Jackknifed.of_groups(value, unbiased, deviations)


def without_each_group(groups: Sequence[Tensor], t: float, backend: str) -> tuple[Tensor, Tensor]:
    """Uniformity of the rows of all groups, and of all but each group, as float64.

    The sums of the potential within and between groups give them all; every pair is visited
    once.
    """
    count = len(groups)
    log_sums = groups[0].new_full((count, count), -math.inf, dtype=torch.float64)
    pairs = torch.zeros_like(log_sums)
    for g, rows in enumerate(groups):
        if len(rows) > 1:
            pairs[g, g] = len(rows) * (len(rows) - 1) / 2
            log_sums[g, g] = log_mean_potential(rows, t, backend=backend)
        for h in range(g):
            pairs[h, g] = len(rows) * len(groups[h])
            log_sums[h, g] = log_mean_potential(
                rows, t, queue=groups[h], intra_batch=False, backend=backend
            )
    log_sums = log_sums + pairs.log()

    def over(kept: Tensor) -> Tensor:
        return log_sums[kept][:, kept].flatten().logsumexp(0) - pairs[kept][:, kept].sum().log()

    everything = torch.ones(count, dtype=torch.bool, device=pairs.device)
    alone = torch.eye(count, dtype=torch.bool, device=pairs.device)
    return over(everything), torch.stack([over(everything & ~one) for one in alone])


def row_keys(seed: int, rank: int, first: Tensor, count: int) -> Tensor:
    """Numbers in [-2^62, -1] for rows first, first + 1, ...: the splitmix64 hash of their place."""
    place = first + torch.arange(count, device=first.device)
    stream = _mixed(torch.full_like(place, _signed(rank * _GOLDEN + seed)))
    x = _mixed(place * _signed(_GOLDEN) + stream)
    return -((x & (2**62 - 1)) + 1)


def _mixed(x: Tensor) -> Tensor:
    # Stafford's variant 13; torch shifts signed numbers, so the sign is masked off afterwards.
    x = (x ^ (x >> 30 & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (2**33 - 1))


def _signed(x: int) -> int:
    x &= 2**64 - 1
    return x - 2**64 if x >= 2**63 else x
