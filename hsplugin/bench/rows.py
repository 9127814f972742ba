r"""The rows that are measured, and the exact value and gradient of their potential in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Larger sets are copies of at most this many rows, so that the exact value of any size is known.
MOST_DISTINCT, LEAST_DISTINCT = 8192, 512
CLUSTERS = 10


def distinct_rows(n: int, d: int) -> Tensor:
    """The different ones of n unit rows, shape (m, d) with m a divisor of n, in clusters.

    Without clusters, the pulls of rows in all directions would cancel, and errors with them.
    """
    m = max(m for m in range(1, min(n, MOST_DISTINCT) + 1) if n % m == 0)
    if m < LEAST_DISTINCT:
        m = n
    generator = torch.Generator().manual_seed(0)
    centres = nn.functional.normalize(torch.randn(CLUSTERS, d, generator=generator), dim=1)
    noise = torch.randn(m, d, generator=generator) / d**0.5
    return nn.functional.normalize(centres[torch.arange(m) % CLUSTERS] + 0.2 * noise, dim=1)


def expected(distinct: Tensor, n: int, t: float) -> tuple[float, Tensor]:
    r"""Potential of n rows that are copies of (m, d), and its gradient by the first m, in float64.

    With r copies of each, every pair of different rows counts :math:`r^2` times, and
    :math:`m r (r - 1)` ordered pairs of equal rows have weight 1 and no gradient.
    """
    m, copies = len(distinct), n // len(distinct)
    value = exact(distinct, t)
    different = copies**2 * math.exp(value) * m * (m - 1)
    total = different + m * copies * (copies - 1)
    gradient = exact_gradient(distinct, t, value) * (different / copies / total)
    return math.log(total / (n * (n - 1))), gradient


def exact(x: Tensor, t: float) -> float:
    r"""The potential :math:`\log\mathrm{mean}_{i \ne j} e^{-t\|x_i - x_j\|^2}` in float64."""
    n = len(x)
    log_sums = torch.stack([block.logsumexp((0, 1)) for block in _log_weights(x, t)])
    return float(log_sums.logsumexp(0)) - math.log(n * (n - 1))


def exact_gradient(x: Tensor, t: float, value: float) -> Tensor:
    r"""Gradient (n, d) of the potential with that value, in float64.

    With the weights' sum S it is :math:`4 t \sum_j w_{ij} (x_j - x_i) / S`.
    """
    n, start, pulls = len(x), 0, []
    columns = x.detach().double()
    for block in _log_weights(x, t):
        weights = (block - value - math.log(n * (n - 1))).exp()
        own = columns[start : start + len(block)]
        pulls.append(weights @ columns - weights.sum(1, keepdim=True) * own)
        start += len(block)
    return 4 * t * torch.cat(pulls)


def _log_weights(x: Tensor, t: float) -> Iterator[Tensor]:
    """Logarithms of the weights of some rows with all, -inf of each with itself."""
    x = x.detach().double()
    step = max(1, 2**24 // len(x))
    for start in range(0, len(x), step):
        squared = torch.cdist(x[start : start + step], x, compute_mode="use_mm_for_euclid_dist")
        log_weights = squared.square_().mul_(-t)
        log_weights.diagonal(start).fill_(-math.inf)
        yield log_weights
