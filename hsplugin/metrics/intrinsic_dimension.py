"""Dimension of the manifold that the features lie on, from the two nearest neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.metrics.inputs import TakesFeatures
from hsplugin.metrics.sampled import SampledMetric

# Numbers held at once.
_BLOCK = 2**22
# Those whose distances are computed anew, as products lose the digits of short ones.
_CANDIDATES = 8


def intrinsic_dimension(features: Tensor) -> Tensor:
    r"""Intrinsic dimension of the features, by the ratios of two nearest neighbours' distances.

    .. math::
        \Bigl(\frac1N \sum_i \log \frac{r_{i2}}{r_{i1}}\Bigr)^{-1}

    with the distances of row i to its nearest and second nearest neighbour. Above 0; more goes with
    more expressive representations. Rows that have an equal are left out; NaN if all have, or if
    all ratios are one.

    Source: the maximum-likelihood form of TwoNN, Facco et al., "Estimating the intrinsic dimension
    of datasets by a minimal neighborhood information", Scientific Reports 2017. It is the ID of
    CLID, Lu et al., https://arxiv.org/abs/2206.01251, whose predictor adds it to the learnability
    of clusters, each standardised over the encoders that are compared; one encoder has none. The
    paper of TwoNN fits a line to the ratios without the largest tenth; that is not done here.

    Args:
        features: Unit features, shape (N, d), N >= 3.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> x = torch.linspace(0, 1, 1000)[:, None].double() ** 2 * torch.ones(3)
        >>> 0.8 < intrinsic_dimension(x + 1e-4 * torch.tensor([[1.0, -1, 0]])).item()
        True
    """
    return IntrinsicDimension(normalize=False).of(features)


class IntrinsicDimension(TakesFeatures, SampledMetric):
    r"""Intrinsic dimension by two nearest neighbours; more is more expressive.

    See :func:`hsplugin.metrics.functional.intrinsic_dimension`. Exact over all rows up to
    ``max_samples``, beyond that from a fair sample of as many; from fewer where features are wide,
    such as 4096 of 2048 dimensions or 2048 of 8192. Takes O(N^2 d) time and O(N d) memory.

    Args:
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        normalize: Whether to scale features to unit length first.
        seed: Chooses another sample.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If max_samples is no integer.
        ValueError: If max_samples < 2.

    Example:
        >>> metric = IntrinsicDimension()
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]))
        >>> metric.compute().item() > 0
        True
    """

    name = "intrinsic_dimension"
    title = "intrinsic dimension"
    settings = ("max_samples", "normalize")
    note = "of {dim}, more is more expressive"
    may_be_nan = True
    least_rows = 3
    higher_is_better = True
    most_products = 2.0**35

    def __init__(
        self, *, max_samples: int = 10_000, normalize: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(max_samples=max_samples, normalize=normalize, seed=seed, **kwargs)

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        # Ratios do not depend on scale, and squares may overflow.
        largest = x.abs().amax()
        x = x / torch.where(largest > 0, largest, 1.0)
        lengths = x.square().sum(dim=1)
        total, rows_with_ratio = x.new_zeros((), dtype=torch.float64), 0
        block = _BLOCK // max(len(x), _CANDIDATES * x.shape[1])
        for rows in torch.arange(len(x), device=x.device).split(max(1, block)):
            squares = lengths - 2 * (x[rows] @ x.T)
            squares[torch.arange(len(rows), device=x.device), rows] = torch.inf
            near = squares.topk(min(_CANDIDATES, len(x) - 1), largest=False).indices
            apart = (x[near] - x[rows][:, None]).to(torch.float64)
            first, second = torch.linalg.vector_norm(apart, dim=2).sort(dim=1).values[:, :2].T
            distinct = first > 0
            total += (second[distinct] / first[distinct]).log().sum()
            rows_with_ratio += int(distinct.sum())
        return torch.where(total > 0, rows_with_ratio / total, torch.nan)
