r"""The potential of unit rows on a CPU by torch's own fused attention, in O(N d) memory.

For unit rows and columns :math:`w_{ij} = e^{2t\,r_i \cdot c_j - 2t}`, so that attention of the rows
to the columns with scale 2t has :math:`\sum_j w_{ij}` in its log-sum-exp and
:math:`\sum_j w_{ij} c_j` in its output. It knows nothing of symmetry, but never writes a weight to
memory, which outweighs it.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

# Pairs from which it takes less time than tiles.
LEAST_PAIRS = 2**14
# How far a squared length may be from one, for which no bias is computed: float32's rounding.
LENGTH_ROUNDING = 5e-7


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Sum the weights of all pairs; see :func:`hsplugin.potential.reference.accumulate`.

    Returns:
        As there; or None where tiles have to be taken: without a gradient, for features other than
        float32 on a CPU and of length one, for few pairs, and where a row's pair with itself, which
        attention cannot leave out, would outweigh all others.
    """
    n, m = len(rows), len(columns)
    # Uniform features have the least mean weight there is, which is above e^-2t.
    suits = need_gradient and rows.dtype == torch.float32 and rows.is_cpu
    if not suits or n * m < LEAST_PAIRS or m * math.exp(-2 * t) < 1 or not _available():
        return None
    if not _unit(rows) or not (columns is rows or _unit(columns)):
        return None
    keys = columns[None, None]
    attended, log_sums = _attend(rows[None, None], keys, keys, scale=2 * t)
    sums = log_sums.view(-1).sub_(2 * t).exp_()
    total = sums.sum(dtype=torch.float64)
    if own_offset is not None:
        total -= n
        if not float(total) > n / 4:
            return None
    # A row's pair with itself adds to both terms of the pull alike.
    pull = attended.view(rows.shape).sub_(rows).mul_(sums.unsqueeze(1))
    return total.log(), pull.div_(total.to(pull.dtype))


def _unit(features: Tensor) -> bool:
    lengths = torch.linalg.vecdot(features, features)
    return float(lengths.sub_(1).abs_().max()) < LENGTH_ROUNDING


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention, which torch offers under no public name for a CPU."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, log_sums = attend(queries, keys, values, scale=scale)
    return output, log_sums


@functools.cache
def _available() -> bool:
    """Whether this torch has the kernel, and means the same by it."""
    rows = torch.eye(3, dtype=torch.float32, device="cpu")[None, None]
    try:
        output, log_sums = _attend(rows, rows, rows, scale=1.0)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    weights = rows[0, 0].exp()
    sums = weights.sum(dim=1)
    return torch.allclose(log_sums.flatten(), sums.log()) and torch.allclose(
        output[0, 0], weights / sums[:, None]
    )
