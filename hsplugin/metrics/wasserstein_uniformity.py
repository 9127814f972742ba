"""Distance from the uniform distribution, as Gaussians see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hsplugin.functional import power_of_length
from hsplugin.metrics.moments import MomentMetric, Spectra


def wasserstein_uniformity(features: Tensor) -> Tensor:
    r"""Distance of the features from the uniform distribution, as Gaussians see it.

    .. math::
        W_2 = \sqrt{\|\mu\|^2 + 1 + \mathrm{tr}\,\Sigma
              - \tfrac{2}{\sqrt d} \mathrm{tr}\,\Sigma^{1/2}}

    the quadratic Wasserstein distance between N(mu, Sigma) and N(0, I/d), with Sigma divided by N.
    On unit rows it lies in [0, sqrt 2]; less is better, and it sees dimensions that died.

    Source: Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning", ICLR 2024.
    Some reimplementations divide the covariance by N - 1, which makes the value depend on N for
    repeated data, and take the root of each entry where the formula has the root of the matrix.

    Args:
        features: Unit features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(wasserstein_uniformity(corners).item(), 6)
        0.0
    """
    return WassersteinUniformity(normalize=False).of(features)


class WassersteinUniformity(MomentMetric):
    r"""Wasserstein distance to the uniform distribution; less is better.

    .. math::
        \sqrt{\|\mu\|^2 + 1 + \mathrm{tr}\,\Sigma - \tfrac{2}{\sqrt d} \mathrm{tr}\,\Sigma^{1/2}}

    See :func:`hsplugin.metrics.functional.wasserstein_uniformity`.

    Args:
        normalize: Whether to scale features to unit length first.
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = WassersteinUniformity()
        >>> metric.update(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
        >>> metric.update(torch.tensor([[0.0, 3.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        0.0
    """

    name = "wasserstein_uniformity"
    title = "Wasserstein uniformity"
    settings = ("normalize",)
    note = "0 is best, 1.41 is a collapse"
    higher_is_better = False

    def __init__(self, *, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._normalize = normalize
        self._forbid_merging(normalize)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to the root of 2 on the sphere."""
        return 0.0, 2**0.5 if self._normalize else float("inf")

    def describe(self, rows: int, dim: int) -> str:
        """The best value, which fewer rows than dimensions keep from 0."""
        note, spanned = super().describe(rows, dim), rows - 1
        if spanned >= dim:
            return note
        # Unit rows with mean zero that spread alike in all directions that they span.
        best = (2 - 2 * (spanned / dim) ** 0.5) ** 0.5
        return f"{note}; so few rows in {dim} dimensions reach {best:.2f}"

    def _value(self, shared: Spectra) -> Tensor:
        spectrum = shared.covariance_spectrum * shared.scale**2
        spread = spectrum.sum() - 2 / len(spectrum) ** 0.5 * power_of_length(spectrum, 1.0).sum()
        squared = shared.mean_square * shared.scale**2 + 1 + spread
        return power_of_length(squared.clamp(min=0), 1.0)
