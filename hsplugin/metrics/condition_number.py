"""Largest over smallest singular value of the features."""

from __future__ import annotations

from torch import Tensor

from hsplugin.metrics.moments import MomentMetric, Spectra


def condition_number(features: Tensor) -> Tensor:
    r"""Condition number of the uncentred feature matrix, :math:`\sigma_1 / \sigma_{\min(N, d)}`.

    From 1 (all directions alike) to infinity, which it is where the rank is deficient, as with
    dimensions that died; less is better. NaN if all features are zero.

    Source: Golub & Van Loan, "Matrix Computations"; ``numpy.linalg.cond`` has the same definition.
    The singular values come from the eigenvalues of X^T X in float64: to be trusted up to 1e7, and
    infinite from about 1e8 on.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> import torch
        >>> round(condition_number(torch.diag(torch.tensor([4.0, 2.0, 1.0]))).item(), 6)
        4.0
    """
    return ConditionNumber().of(features)


class ConditionNumber(MomentMetric):
    r"""Condition number of the features, :math:`\sigma_1 / \sigma_{\min(N, d)}`; less is better.

    See :func:`hsplugin.metrics.functional.condition_number`. Takes the features as they are.

    Example:
        >>> import torch
        >>> metric = ConditionNumber()
        >>> metric.update(4 * torch.eye(2))
        >>> metric.update(torch.tensor([[3.0, 0.0]]))
        >>> round(metric.compute().item(), 6)
        1.25
    """

    name = "condition_number"
    title = "condition number"
    note = "1 is best, inf is a deficient rank"
    single_eigenvalues = True
    may_be_nan = True
    higher_is_better = False

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 1 on."""
        return 1.0, float("inf")

    def _value(self, shared: Spectra) -> Tensor:
        return shared.singular_values[0] / shared.singular_values[-1]

    def _representable(self, value: Tensor) -> Tensor:
        # Infinity is its value of a deficient rank.
        return value
