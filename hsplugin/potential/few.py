r"""The potential of few rows on a CPU, where the number of calls decides, not the arithmetic.

All weights come at once from the Gram matrix: :math:`w_{ij} = e^{2t\,x_i \cdot x_j - t\|x_i\|^2 -
t\|x_j\|^2}`, where for rows of one length the last two terms are a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype

# Beyond it, half of the Gram matrix in tiles takes less time than all of it at once.
MOST_ROWS = 640
# Of 2t |x|^2: up to here no weight comes near to what float32 cannot hold.
LARGEST_EXPONENT = 40.0
# The potential over 2t |x|^2, -1 for many rows in all directions, above which they lie so close
# together that products of the rows as they are leave too little of their distances.
LEAST_SPREAD = -0.05
# By how many roundings the squares of lengths may differ that are taken to be the same.
LENGTH_ROUNDINGS = 16
# What the gradient is multiplied by has to fit into float32 too.
LARGEST_FACTOR = 1e30


def value_and_gradient(
    rows: Tensor, t: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Log-mean over the pairs within rows (n, d), and its gradient.

    Returns:
        A scalar and, if wanted, the gradient, both in the computing dtype; or None where there are
        too many rows or one, they lie too far apart or too close together for their Gram matrix,
        the gradient's factor could overflow, or a feature is NaN or infinite.
    """
    n = rows.shape[0]
    if not 2 <= n <= MOST_ROWS or not rows.is_cpu:
        return None
    dtype = computing_dtype(rows.dtype)
    r = rows if rows.dtype == dtype else rows.to(dtype)
    w = torch.addmm(r.new_empty(1), r, r.T, beta=0, alpha=2 * t)
    own = w.diagonal()
    shortest, longest = map(float, own.aminmax())
    if not longest <= LARGEST_EXPONENT:
        return None
    log_scale = -(shortest + longest) / 2
    if longest - shortest > LENGTH_ROUNDINGS * torch.finfo(dtype).eps * longest:
        log_scale, bias = 0.0, own / -2
        w.add_(bias).add_(bias.unsqueeze(1))
    w.exp_()
    own.zero_()
    sums = w.sum(dim=1)
    total = float(sums.sum())
    log_mean = math.log(total / (n * (n - 1))) + log_scale
    if not log_mean < LEAST_SPREAD * longest or 4 * t > LARGEST_FACTOR * total:
        return None
    value = torch.scalar_tensor(log_mean, dtype=dtype, device="cpu")
    if not need_gradient:
        return value, None
    # As the sum, taken off the diagonal, multiplies the row itself, the product of the weights
    # with the rows is sum_j w_ij (r_j - r_i).
    own.sub_(sums)
    return value, torch.addmm(r.new_empty(1), w, r, beta=0, alpha=4 * t / total)
