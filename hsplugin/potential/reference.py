"""The potential by its definition, in float64 and O(N^2) memory: the reference for all engines."""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype


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
        The scalar :math:`\log S = \log \sum_{ij} w_{ij}` in float64, and the pull
        :math:`\sum_j w_{ij} (c_j - r_i) / S`, shape (n, d), or None. The derivative of log S by
        r_i as a row is 2 t times the pull.
    """
    r, c = rows.double(), columns.double()
    log_w = torch.cdist(r, c, compute_mode="donot_use_mm_for_euclid_dist").square().mul(-t)
    if own_offset is not None:
        log_w.diagonal(own_offset).fill_(-torch.inf)
    log_sum = log_w.flatten().logsumexp(0)
    # An infinite feature is infinitely far from all others and would leave no trace.
    log_sum = log_sum + 0 * (r.sum() + c.sum())
    if not need_gradient:
        return log_sum, None
    w = (log_w - log_sum).exp()
    w /= w.sum()  # for huge exponents the log-sum rounds to the largest exponent
    pull = w @ c - w.sum(dim=1, keepdim=True) * r
    return log_sum, pull.to(computing_dtype(rows.dtype))
