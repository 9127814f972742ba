"""Fair samples without random state, and what groups of rows tell about an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hsplugin.potential import log_mean_potential

# With G groups the standard error is itself known to a relative 1 / sqrt(2 (G - 1)), here 18 %.
GROUPS = 16
_GOLDEN = 0x9E3779B97F4A7C15


def jackknife(value: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
    """An estimate with its bias of order 1/N taken out, and its standard error.

    Args:
        value: The estimate from all rows, a scalar.
        without: The estimates without each of G groups of rows, shape (G,).
    """
    groups = len(without)
    unbiased = groups * value - (groups - 1) * without.mean()
    error: Tensor = ((groups - 1) / groups * (without - without.mean()).square().sum()).sqrt()
    return unbiased, error


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
