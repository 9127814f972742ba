"""The potential by its definition, in O(N^2) memory: the reference for all engines.

In float64 where the device has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype, summing_dtype


def available(features: Tensor) -> bool:
    """Whether this engine can take these features: any."""
    return True


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    r"""Sum :math:`w_{ij} = e^{-t \|r_i - c_j\|^2}` over pairs of rows and columns.

    Args:
        rows: Features r, shape (n, d).
        columns: Features c, shape (m, d).
        t: Inverse width of the Gaussian.
        own_offset: If an integer k, row i is column k + i and does not pair with it; k = 0 and
            ``columns is rows`` is the self set. If None, every row pairs with every column.
        need_gradient: Whether to return the pull.

    Returns:
        The scalar :math:`\log (S / nm)`, S being the sum :math:`\sum_{ij} w_{ij}`, in float64 where
        the device has it, and the pull :math:`\sum_j w_{ij} (c_j - r_i) / S`, shape (n, d), or
        None. The derivative of log S by r_i as a row is 2 t times the pull.
    """
    dtype = summing_dtype(rows)
    r, c = rows.to(dtype), columns.to(dtype)
    log_w = torch.cdist(r, c, compute_mode="donot_use_mm_for_euclid_dist").square().mul(-t)
    if own_offset is not None:
        log_w.diagonal(own_offset).fill_(-torch.inf)
    largest = log_w.max()
    w = (log_w - largest).exp()
    # An infinite feature is infinitely far from all others and would leave no trace.
    log_mean = w.mean().log() + largest + (0 * r).sum() + (0 * c).sum()
    if not need_gradient:
        return log_mean, None
    w /= w.sum()
    pull = w @ c - w.sum(dim=1, keepdim=True) * r
    return log_mean, pull.to(computing_dtype(rows.dtype))
