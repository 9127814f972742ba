r"""Small sets on a CPU: all weights of all sets at once, from batched Gram matrices.

Up to some hundred rows, a call into torch costs as much as what it computes, so all sets go through
together, and every pair is computed both ways round. The weights are :math:`w_{ij} = e^{2t\,x_i
\cdot x_j - t\|x_i\|^2 - t\|x_j\|^2}`; for rows of one length the last two terms are a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype

# Larger sets are faster in tiles, which compute each pair once.
MOST_ROWS = 640
# Of 2t |x|^2: no weight comes near to the limits of float32.
LARGEST_EXPONENT = 40.0
# The potential over 2t |x|^2 is about -1 for rows in all directions and 0 at collapse. Above this
# value, the rounding of products is large compared with the distances.
LEAST_SPREAD = -0.05
# Rows whose squared lengths differ by at most this share, 16 ulps, count as equally long.
LENGTH_ROUNDING = {dtype: 16 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
# Factors of the gradient outside these bounds could overflow in float32 or lose digits.
SMALLEST_FACTOR, LARGEST_FACTOR = 1e-30, 1e30


def value_and_gradient(
    x: Tensor, t: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Mean over sets of rows of the log-mean over the pairs within each, and its gradient.

    Args:
        x: One set of rows (n, d), or several (v, n, d).
        t: Inverse width of the Gaussian.
        need_gradient: Whether the gradient is wanted.

    Returns:
        A scalar and the gradient of x's shape or None, both in the computing dtype; or None
        if an engine must take over: on other devices, for many rows or one, for rows too far apart
        or too close together for their Gram matrix, if a factor of the gradient does not fit into
        float32, or if a feature is NaN or infinite.
    """
    n = x.shape[-2]
    if not 2 <= n <= MOST_ROWS or not x.is_cpu:
        return None
    r = x.to(computing_dtype(x.dtype))
    if x.dim() == 2:
        r = r.unsqueeze(0)
    unused = r.new_empty(1, 1, 1)
    w = torch.baddbmm(unused, r, r.mT, beta=0, alpha=2 * t)
    own = w.diagonal(dim1=1, dim2=2)
    shortest, longest = map(float, own.aminmax())
    if not longest <= LARGEST_EXPONENT:
        return None
    log_scale = -(shortest + longest) / 2
    if longest - shortest > LENGTH_ROUNDING[r.dtype] * longest:
        log_scale, bias = 0.0, own / -2
        w.add_(bias.unsqueeze(1)).add_(bias.unsqueeze(2))
    w.exp_()
    own.zero_()
    sums = w.sum(dim=2)
    totals = sums.sum(dim=1).tolist()
    values = [math.log(total / (n * (n - 1))) + log_scale for total in totals]
    if not max(values) < LEAST_SPREAD * longest:
        return None
    factors = [4 * t / (total * len(totals)) for total in totals]
    if not SMALLEST_FACTOR < min(factors) <= max(factors) < LARGEST_FACTOR:
        return None
    value = r.new_full((), sum(values) / len(values))
    if not need_gradient:
        return value, None
    # With minus the sums on the diagonal, the product is sum_j w_ij (r_j - r_i).
    own.sub_(sums)
    gradient = torch.baddbmm(unused, w, r, beta=0, alpha=factors[0])
    for i in range(1, len(factors)):
        gradient[i].mul_(factors[i] / factors[0])
    return value, gradient if x.dim() == 3 else gradient.squeeze(0)
