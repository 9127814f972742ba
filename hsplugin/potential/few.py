"""The potential of few rows on a CPU, where the number of calls decides, not the arithmetic."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype

# Up to here the distances of torch.pdist take no longer than a matrix product and its remainder,
# of which there is more with a gradient.
FEW_ROWS = 128
FEW_ROWS_FORWARD = 384
# Exponentials of less come near to what float32 cannot hold, and are left to other engines.
SMALLEST_EXPONENT = -80.0
# What the gradient is multiplied by has to fit into float32 too.
LARGEST_FACTOR = 1e30


def value_and_gradient(
    rows: Tensor, t: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Log-mean over the pairs within rows (n, d), and its gradient.

    Returns:
        A scalar and, if wanted, the gradient, both in the computing dtype; or None where there are
        too many rows or one, weights could underflow, the gradient's factor overflow, or a feature
        is NaN or infinite.
    """
    n = len(rows)
    if not 2 <= n <= (FEW_ROWS if need_gradient else FEW_ROWS_FORWARD) or not rows.is_cpu:
        return None
    dtype = computing_dtype(rows.dtype)
    r = rows if rows.dtype == dtype else rows.to(dtype)
    w = torch.pdist(r).square_().mul_(-t)
    if not float(w.min()) > SMALLEST_EXPONENT:
        return None
    total = float(w.exp_().sum())
    if need_gradient and 2 * t > LARGEST_FACTOR * total:
        return None
    value = torch.scalar_tensor(math.log(2 * total / (n * (n - 1))), dtype=dtype, device="cpu")
    if not need_gradient:
        return value, None
    # The diagonal holds some pair's weight, which the row's sum, taken off there, takes back. As
    # the sum then multiplies the row itself, the product is sum_j w_ij (r_j - r_i).
    w = w.index_select(0, _pair_of_each_entry(n)).view(n, n)
    w.diagonal().sub_(w.sum(dim=1))
    return value, torch.addmm(r, w, r, beta=0, alpha=2 * t / total)


@functools.lru_cache(maxsize=16)
def _pair_of_each_entry(n: int) -> Tensor:
    """Where in the order of torch.pdist the pair of each entry of an n x n matrix is."""
    i, j = torch.triu_indices(n, n, offset=1, device="cpu")
    pairs = torch.zeros(n, n, dtype=torch.int64, device="cpu")
    pairs[i, j] = pairs[j, i] = torch.arange(len(i), device="cpu")
    return pairs.flatten()
