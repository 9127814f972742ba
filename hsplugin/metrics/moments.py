"""The metrics that running first and second moments suffice for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_positive
from hsplugin.functional import unit_rows
from hsplugin.metrics import spectrum
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.spectrum import Moments, merge_moments, pack_moments, with_features


class MomentMetric(GeometryMetric):
    """Base of the metrics over moments: (d + 1)^2 float64 numbers, whatever the rows seen.

    In a :class:`torchmetrics.MetricCollection` those that take the features as they are share one
    update.
    """

    moments: Tensor

    _normalize = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)

    def update(self, features: Tensor) -> None:
        """Add features.

        Args:
            features: Shape (N, d), of any floating dtype, N >= 1.

        Raises:
            TypeError: If features is no floating-point tensor.
            ValueError: If its shape is wrong or d differs from that of earlier calls.
        """
        check_features("features", features)
        features = features.detach()
        self.moments = add_moments(
            self.moments, unit_rows(features) if self._normalize else features
        )
        self._count(features)

    def compute(self) -> Tensor:
        """Return the metric of all features seen.

        Raises:
            ValueError: If fewer than two rows were seen, or features were NaN or infinite.
        """
        self._check_seen()
        return self._score(Moments.unpack(self.moments))

    def _score(self, moments: Moments) -> Tensor:
        raise NotImplementedError


def add_moments(moments: Tensor, features: Tensor) -> Tensor:
    """Packed moments with further features (N, d) merged in; (1, 1) means that there were none.

    Raises:
        ValueError: If the features' dimension is not that of the moments.
    """
    if len(moments) == 1:
        return pack_moments(features)
    if len(moments) != features.shape[1] + 1:
        raise ValueError(
            f"features have dimension {features.shape[1]}, but {len(moments) - 1} in earlier "
            f"calls; call reset() before measuring another representation"
        )
    return with_features(moments, features)


class WassersteinUniformity(MomentMetric):
    r"""Wasserstein distance to the uniform distribution; less is better.

    .. math::
        \sqrt{\|\mu\|^2 + 1 + \mathrm{tr}\,\Sigma - \tfrac{2}{\sqrt d} \mathrm{tr}\,\Sigma^{1/2}}

    See :func:`hsplugin.metrics.functional.wasserstein_uniformity`.

    Args:
        normalize: Whether to scale features to unit length first.
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = WassersteinUniformity()
        >>> metric.update(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
        >>> metric.update(torch.tensor([[0.0, 3.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        0.0
    """

    higher_is_better = False

    def __init__(self, *, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._normalize = normalize
        self._set_apart(normalize)

    def _score(self, moments: Moments) -> Tensor:
        return spectrum.wasserstein_uniformity(moments.mean, spectrum.covariance_spectrum(moments))


class RankMe(MomentMetric):
    r"""Smooth rank of the uncentred features, :math:`\exp(-\sum p \log p)`; more is better.

    See :func:`hsplugin.metrics.functional.rankme`. Takes the features as they are, as the paper.
    The singular values come from the eigenvalues of X^T X in float64, so that those below 1e-8 of
    the largest are rounding noise of about that size, which is less than the paper's epsilon; the
    function decomposes X itself and agrees to about 1e-5 relative even where the rank is deficient.

    Args:
        epsilon: Added to each p, above 0.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If epsilon is no number.
        ValueError: If epsilon <= 0.

    Example:
        >>> metric = RankMe()
        >>> metric.update(torch.eye(4))
        >>> round(metric.compute().item(), 3)
        4.0
    """

    higher_is_better = True

    def __init__(self, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = check_positive("epsilon", epsilon)

    def _score(self, moments: Moments) -> Tensor:
        return spectrum.entropy_rank(spectrum.singular_values(moments), self.epsilon)


class EffectiveRank(MomentMetric):
    r"""Effective rank of the covariance, :math:`\exp(-\sum p \log p)`; more is better.

    See :func:`hsplugin.metrics.functional.effective_rank`. Takes the features as they are.

    Example:
        >>> metric = EffectiveRank()
        >>> metric.update(torch.eye(3))
        >>> metric.update(-torch.eye(3))
        >>> round(metric.compute().item(), 6)
        3.0
    """

    higher_is_better = True

    def _score(self, moments: Moments) -> Tensor:
        return spectrum.entropy_rank(spectrum.covariance_spectrum(moments))


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

    higher_is_better = None

    def __init__(self, fit_range: tuple[int, int] = (10, 100), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fit_range = spectrum.check_fit_range(fit_range)

    def _score(self, moments: Moments) -> Tensor:
        try:
            spectrum.check_fit_range(self.fit_range, len(moments.mean))
        except ValueError as error:
            self._refuse(str(error))
        return spectrum.alpha_req(spectrum.covariance_spectrum(moments), self.fit_range)


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

    higher_is_better = True

    def _score(self, moments: Moments) -> Tensor:
        return spectrum.nesum(spectrum.covariance_spectrum(moments))
