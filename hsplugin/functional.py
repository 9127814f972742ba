"""The paper's formulas: alignment, uniformity and the least possible uniformity.

Source: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere", ICML 2020, https://arxiv.org/abs/2005.10242.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hsplugin.checks import SHORTEST_ROW, check_integer, check_pair, check_positive, computing_dtype
from hsplugin.potential import log_mean_potential


def unit_rows(x: Tensor) -> Tensor:
    r"""Scale each row to unit length: :math:`x_i / \|x_i\|_2`, with a bounded gradient.

    This is what losses take. Rows shorter than 1e-6 stay unchanged, so a zero row stays zero and
    its gradient is not multiplied by one over its length; a loss of such rows alone is therefore
    near 0, as for a collapse. NaN stays NaN, and so become rows whose squared length overflows the
    dtype, longer than 1.8e19 in float32. Metrics count the direction of every row:
    :func:`hsplugin.metrics.directions.directions`.

    Args:
        x: Features, shape (..., d), of any floating dtype.

    Returns:
        Unit rows, float64 for float64 features and float32 for all others.
    """
    x = x.to(computing_dtype(x.dtype))
    # Not by row_lengths, whose second derivative is NaN for a zero row.
    squared = x.square().sum(dim=-1, keepdim=True)
    return x / torch.threshold(squared + 0 * squared, SHORTEST_ROW**2, 1.0).sqrt()


def row_lengths(x: Tensor) -> Tensor:
    """What :func:`unit_rows` divides rows (..., d) by, shape (..., 1); not to be differentiated."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # Finite rows divided by an infinite length would become zero and not NaN.
    return torch.threshold(norms + 0 * norms, SHORTEST_ROW, 1.0)


def align_loss(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Mean distance of positive pairs, :math:`\frac1N \sum_i \|x_i - y_i\|_2^\alpha`.

    Does not normalise; on unit vectors the value lies in [0, 2^alpha], lower is better. For
    alpha < 2 identical pairs get the subgradient zero.

    Args:
        x: Features of one view, shape (N, d).
        y: Features of the other view, same shape, dtype and device.
        alpha: The exponent, above 0.

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If the views are not floating-point tensors of one dtype, or alpha is not a
            number.
        ValueError: If the views differ in shape or device, are empty, or alpha <= 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> align_loss(x, -x)
        tensor(4.)
    """
    check_pair("x", x, "y", y)
    return pair_distances(x, y, check_positive("alpha", alpha)).mean()


def pair_distances(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    r"""The terms of :func:`align_loss`: :math:`\|x_i - y_i\|_2^\alpha` for rows (..., d)."""
    dtype = computing_dtype(x.dtype)
    squared = (x.to(dtype) - y.to(dtype)).square().sum(dim=-1)
    # An infinite feature makes the loss NaN, as elsewhere.
    return power_of_length(squared + 0 * squared, alpha)


def power_of_length(squared: Tensor, alpha: float) -> Tensor:
    """Lengths to the power alpha from their squares, with the subgradient zero at zero."""
    if alpha == 2:
        return squared
    # A derivative of the power is infinite at zero: the first one for alpha < 2, the second for
    # alpha < 4. Infinity times zero is NaN.
    identical = squared == 0
    return squared.masked_fill(identical, 1.0).pow(alpha / 2).masked_fill(identical, 0.0)


def uniform_loss(
    x: Tensor,
    t: float = 2.0,
    *,
    queue: Tensor | None = None,
    intra_batch: bool = True,
    include_self: bool = False,
) -> Tensor:
    r"""Log-mean Gaussian potential, :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    Does not normalise; on unit vectors the value lies in [-4t, 0], lower is better. Its infimum
    over distributions on the sphere is :func:`uniformity_optimum`; the estimate from a small batch
    can fall below it. Exact for every t, in O(N d) memory. Rounding moves each exponent by about
    :math:`t \|x\|^2 \epsilon`, which matters for long rows alone: pass those as float64.

    Args:
        x: Features, shape (N, d).
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        queue: More features (K, d) without gradient, such as a memory bank. The mean is then over
            the N K pairs of x and queue and, if ``intra_batch``, the N (N - 1) / 2 within x.
        intra_batch: Whether pairs within x count when there is a queue.
        include_self: Use all N^2 ordered pairs of x, self-pairs included (the V-statistic).

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If the features are not floating-point tensors of one dtype, or t is not a
            number.
        ValueError: If a shape is wrong, there are no pairs, t is out of range, or the options
            contradict each other.

    Example:
        >>> import torch
        >>> uniform_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=2)
        tensor(-8.)
    """
    return log_mean_potential(x, t, queue=queue, intra_batch=intra_batch, include_self=include_self)


def uniformity_optimum(dim: int, t: float = 2.0) -> float:
    r"""Uniformity of the uniform distribution on the unit sphere of R^dim, the least of all.

    .. math:: -2t + \log {}_0F_1\left(; \tfrac{dim}{2}; t^2\right)

    Args:
        dim: Dimension d of the features, at least 1.
        t: Inverse width of the Gaussian, above 0.

    Raises:
        TypeError: If dim is not an integer or t is not a number.
        ValueError: If dim < 1 or t <= 0.

    Example:
        >>> round(uniformity_optimum(128), 4)
        -3.9375
    """
    check_integer("dim", dim, least=1)
    t = check_positive("t", t)
    order = dim / 2 - 1
    if t > max(100, order**2 / 20):
        # The series below would take t steps, so use the expansion of the Bessel function
        # I_order(2t) for large arguments (DLMF 10.40.1).
        total = term = 1.0
        k = 0
        while abs(term) > 1e-17:
            k += 1
            term *= ((2 * k - 1) ** 2 - 4 * order**2) / (16 * t * k)
            total += term
        return (
            math.lgamma(dim / 2)
            - order * math.log(t)
            - math.log(4 * math.pi * t) / 2
            + math.log(total)
        )
    # The terms of sum_k t^(2k) / (k! (dim/2)_k) are positive and grow until k (k + dim/2) = t^2,
    # where k < t. Summing relative to the largest term avoids overflow and cancellation.
    largest = log_sum = 0.0
    log_term, k = 0.0, 0
    while k <= t or log_term > largest - 40:
        log_term += 2 * math.log(t) - math.log(k + 1) - math.log(dim / 2 + k)
        k += 1
        largest = max(largest, log_term)
        high, low = max(log_sum, log_term), min(log_sum, log_term)
        log_sum = high + math.log1p(math.exp(low - high))
    return -2 * t + log_sum
