"""First and second moments of features, packed into one float64 matrix.

They can be merged over batches and ranks in any order by the stable pairwise formula (Chan, Golub &
LeVeque 1983); raw sums of squares would cancel when the mean is large beside the spread. Features
whose squares do not fit into float64 are divided by a power of two, which metrics that do not
depend on scale need not undo.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hsplugin.metrics.directions import largest_entries

# Binary exponents of features between minus and plus this, whose squares are far from the limits of
# float64; the others are at most 774 away.
_ORDINARY = 300
_OTHERS = 774


def in_range(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features over a power of two that lets float64 hold their squares, and its exponent."""
    x = features.to(torch.float64)
    if features.dtype != torch.float64:
        return x, x.new_zeros(())
    largest = largest_entries(x.detach().flatten())
    exponent = torch.frexp(largest).exponent.clamp(-_ORDINARY - _OTHERS, _ORDINARY + _OTHERS)
    exponent = (exponent - exponent.clamp(-_ORDINARY, _ORDINARY)).double()
    # Zeros take the exponent of any other features that they are merged with.
    exponent = torch.where(largest == 0, -_OTHERS, torch.where(largest.isfinite(), exponent, 0))
    return x * (-exponent).exp2(), exponent


def pack_moments(features: Tensor) -> Tensor:
    """Moments of features (N, d) as one (d + 1, d + 1) float64 matrix.

    The first row holds the count and the mean, the first column the exponent of the scale, and the
    rest the scatter.
    """
    x, exponent = in_range(features)
    mean = x.mean(dim=0)
    centred = x - mean
    packed = x.new_zeros(x.shape[1] + 1, x.shape[1] + 1)
    packed[0, 0] = len(x)
    packed[0, 1:] = mean
    packed[1, 0] = exponent
    packed[1:, 1:].addmm_(centred.T, centred)
    return packed


def merge_moments(parts: Sequence[Tensor] | Tensor) -> Tensor:
    """Moments of all features together from those of parts, each (d + 1, d + 1).

    A part of shape (1, 1) has seen no features.
    """
    known = [part for part in parts if len(part) > 1]
    if len(known) < 2:
        return known[0] if known else parts[0]
    exponents = torch.stack([part[1, 0] for part in known])
    exponent = exponents.max()
    shrink = (exponents - exponent).exp2()
    heads = torch.stack([part[0] for part in known])
    counts, means = heads[:, 0], heads[:, 1:] * shrink[:, None]
    total = counts.sum()
    mean = (counts[:, None] * means).sum(dim=0) / total.clamp(min=1)
    apart = (means - mean) * counts.sqrt()[:, None]
    merged = known[0] * shrink[0] ** 2
    for part, factor in zip(known[1:], shrink[1:] ** 2, strict=True):
        merged.addcmul_(part, factor)
    merged[1:, 1:].addmm_(apart.T, apart)
    merged[0, 0] = total
    merged[0, 1:] = mean
    merged[1:, 0] = 0
    merged[1, 0] = exponent
    return merged


def change_of_moments(whole: Tensor, part: Tensor) -> Tensor:
    """Derivative of packed moments by the weight of a part of the rows, at weight one."""
    shrink = (part[1, 0] - whole[1, 0]).exp2()
    change = part * shrink**2
    apart = part[0, 1:] * shrink - whole[0, 1:]
    change[1:, 1:].addr_(apart, apart * part[0, 0])
    change[0, 0] = part[0, 0]
    change[0, 1:] = apart * part[0, 0] / whole[0, 0]
    change[1:, 0] = 0
    return change
