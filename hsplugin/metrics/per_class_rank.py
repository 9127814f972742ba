"""Effective rank within classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.metrics.effective_rank import EffectiveRank
from hsplugin.metrics.inputs import MissingInputError
from hsplugin.metrics.moments import values_of_rows
from hsplugin.metrics.sampled import LabelledSample


def per_class_rank(features: Tensor, labels: Tensor) -> Tensor:
    r"""Mean over classes of the effective rank of a class's covariance.

    .. math::
        \frac1C \sum_c \mathrm{erank}(\Sigma_c), \qquad
        \mathrm{erank} = \exp\Bigl(-\sum_k p_k \log p_k\Bigr)

    with p the eigenvalues of the covariance of the features of class c over their sum, as
    :func:`hsplugin.metrics.functional.effective_rank` has it. In [0, d], and for a class of n rows
    at most n - 1. Near 0 the classes have collapsed to points, which the rank of all features
    together does not show; more is better as long as classes stay apart. Classes of one row are
    left out.

    Source: the per-class rank of MONAI's ``EmbeddingCollapseMetric``, which reports
    1 - rank / min(n, d) of each class, of the singular values and not of their squares.

    Args:
        features: Features, shape (N, d), N >= 2.
        labels: Integer class labels, shape (N,); rows with a negative one are left out.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor or labels hold no integers.
        ValueError: If a shape is wrong, labels are missing, a value is NaN or infinite, or no two
            rows share a class.

    Example:
        >>> x = torch.cat([torch.eye(2), -torch.eye(2), torch.ones(2, 2)])
        >>> round(per_class_rank(x, torch.tensor([0, 0, 0, 0, 1, 1])).item(), 6)
        1.0
    """
    return PerClassRank().of(features, labels)


class PerClassRank(LabelledSample):
    r"""Mean effective rank within classes; more is better.

    See :func:`hsplugin.metrics.functional.per_class_rank`. Over all rows up to ``max_samples``,
    beyond that from a fair sample of as many. Takes the features as they are.

    Args:
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        seed: Chooses another sample.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If max_samples is no integer.
        ValueError: If max_samples < 2.

    Example:
        >>> metric = PerClassRank()
        >>> metric.update(torch.eye(2), torch.tensor([0, 0]))
        >>> metric.update(-torch.eye(2), torch.tensor([0, 0]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    name = "per_class_rank"
    title = "rank within classes"
    settings = ("max_samples",)
    note = "0 is a collapse of classes"
    higher_is_better = True

    def __init__(self, *, max_samples: int = 10_000, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(max_samples=max_samples, normalize=False, seed=seed, **kwargs)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to min(N - 1, d)."""
        return 0.0, float(min(rows - 1, dim))

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        classes, counts = labels[labels >= 0].unique(return_counts=True)
        members = [x[labels == label] for label in classes[counts > 1]]
        if not members:
            raise MissingInputError("labels: no two rows share a class that is not negative")
        rank = {"rank": EffectiveRank()}
        return torch.stack([values_of_rows(rank, rows)["rank"] for rows in members]).mean()
