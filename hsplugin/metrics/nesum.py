"""Sum of the covariance's eigenvalues over the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin.metrics.moments import MomentMetric, Spectra


def nesum(features: Tensor) -> Tensor:
    r"""Normalised eigenvalue sum of the covariance, :math:`\sum_k \lambda_k / \lambda_1`.

    From 1 to d (whitened), or 0 if there is no variance at all; more is better.

    Source: He & Ozay, "Exploring the Gap between Collapsed & Whitened Features in
    Self-Supervised Learning", ICML 2022.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> round(nesum(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    return NESum().of(features)


class NESum(MomentMetric):
    r"""Normalised eigenvalue sum, :math:`\sum_k \lambda_k / \lambda_1`; more is better.

    See :func:`hsplugin.metrics.functional.nesum`. Takes the features as they are.

    Example:
        >>> metric = NESum()
        >>> metric.update(torch.eye(3))
        >>> metric.update(-torch.eye(3))
        >>> round(metric.compute().item(), 6)
        3.0
    """

    name = "nesum"
    title = "NESum"
    single_eigenvalues = True
    higher_is_better = True

    def _value(self, shared: Spectra) -> Tensor:
        spectrum = shared.covariance_spectrum
        return torch.div(spectrum.sum(), torch.where(spectrum[0] > 0, spectrum[0], 1.0))
