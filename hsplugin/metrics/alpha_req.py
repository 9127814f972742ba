"""Decay of the covariance's spectrum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_integer
from hsplugin.metrics.moments import MomentMetric, Spectra


def alpha_req(features: Tensor, fit_range: tuple[int, int] = (10, 100)) -> Tensor:
    r"""Decay of the covariance's spectrum: alpha in :math:`\lambda_k \propto k^{-\alpha}`.

    The least-squares slope of log eigenvalue over log index within ``fit_range`` (first and last
    index, counted from one). A value near 1 goes with good downstream accuracy in the paper; far
    above it the representation has few directions, far below it is noise-like. NaN if fewer than
    two eigenvalues in the range are above zero, as after a collapse.

    Source: Agrawal et al., "alpha-ReQ", NeurIPS 2022. The authors' code (reptrix), after Stringer
    et al. (2019), weighs index k by 1/k in the fit; the plain fit is made here.

    Args:
        features: Features, shape (N, d), N >= 2.
        fit_range: First and last index of the eigenvalues that are fitted.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape or range is wrong, d leaves fewer than two eigenvalues in the
            range, or a value is NaN or infinite.

    Example:
        >>> deviations = torch.arange(1, 13).pow(-0.5).diag()
        >>> round(alpha_req(torch.cat([deviations, -deviations]), (1, 12)).item(), 4)
        1.0
    """
    return AlphaReQ(fit_range).of(features)


class AlphaReQ(MomentMetric):
    r"""Decay of the spectrum, :math:`\lambda_k \propto k^{-\alpha}`; near 1 is best.

    See :func:`hsplugin.metrics.functional.alpha_req`. Takes the features as they are.

    Args:
        fit_range: First and last index, counted from one, of the eigenvalues that are fitted.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the range holds fewer than two indices; in ``compute`` also if it does so
            for the dimension of the features.

    Example:
        >>> metric = AlphaReQ(fit_range=(1, 12))
        >>> deviations = torch.arange(1, 13).pow(-0.5).diag()
        >>> metric.update(torch.cat([deviations, -deviations]))
        >>> round(metric.compute().item(), 4)
        1.0
    """

    name = "alpha_req"
    title = "alpha-ReQ"
    settings = ("fit_range",)
    note = "near 1 is best"
    may_be_nan = True
    single_eigenvalues = True
    higher_is_better = None

    def __init__(self, fit_range: tuple[int, int] = (10, 100), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fit_range = check_fit_range(fit_range)
        self.least_dim = self.fit_range[0] + 1

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """At least 0, as eigenvalues are in descending order."""
        return 0.0, float("inf")

    def _value(self, shared: Spectra) -> Tensor:
        first, last = check_fit_range(self.fit_range, shared.dim)
        spectrum = shared.covariance_spectrum[first - 1 : last]
        spectrum = spectrum[spectrum > 0]
        if len(spectrum) < 2:
            return spectrum.new_tensor(float("nan"))
        index = torch.arange(first, first + len(spectrum), device=spectrum.device).double()
        x = index.log() - index.log().mean()
        return torch.div(-(x @ spectrum.log()), x @ x)


def check_fit_range(fit_range: tuple[int, int], dim: int | None = None) -> tuple[int, int]:
    """Return the indices of the eigenvalues to fit.

    Raises:
        TypeError: If an index is no integer.
        ValueError: If fewer than two indices are in the range, or if features of ``dim``
            dimensions have too few in it.
    """
    first, last = (check_integer("fit_range", index, least=1) for index in fit_range)
    if not first < last:
        raise ValueError(f"fit_range must be (first, last) with 1 <= first < last, got {fit_range}")
    if dim is not None and dim < first + 1:
        raise ValueError(
            f"fit_range={fit_range} holds fewer than two of the {dim} eigenvalues that features "
            f"of dimension {dim} have; pass a range that starts earlier, such as (1, {dim})"
        )
    return first, last
