"""Leave-one-out accuracy of a weighted k-nearest-neighbour classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_integer, check_positive
from hsplugin.metrics.inputs import MissingInputError
from hsplugin.metrics.sampled import LabelledSample

# Similarities held at once.
_BLOCK = 2**22


def knn(features: Tensor, labels: Tensor, k: int = 200, temperature: float = 0.1) -> Tensor:
    r"""Share of rows whose class the k most similar other rows vote for.

    .. math::
        \frac1N \sum_i 1\Bigl\{l_i = \arg\max_c \sum_{j \in N_k(i)} e^{s_{ij} / \tau}\,
        1\{l_j = c\}\Bigr\}

    with the cosine similarity s, and the k most similar rows other than i, at most N - 1. Rows that
    are as similar as the k-th share the places that are left; of classes with equal votes the
    smallest wins. So the order of rows does not count. In [0, 1]; more is better. It is 1 where all
    rows are of one class; a row that is alone in its class is always missed.

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination",
    CVPR 2018, https://arxiv.org/abs/1805.01978, as Lightly's ``knn_predict`` has it.

    Args:
        features: Features of any length, shape (N, d), N >= 2.
        labels: Integer class labels, shape (N,); rows with a negative one are left out.
        k: How many neighbours vote.
        temperature: The :math:`\tau` above, over 0.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor or labels hold no integers.
        ValueError: If a shape is wrong, labels are missing, a value is NaN or infinite, k < 1 or
            temperature <= 0.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> knn(x, torch.tensor([0, 0, 1, 1]), k=1).item()
        1.0
    """
    return KNNAccuracy(k, temperature).of(features, labels)


class KNNAccuracy(LabelledSample):
    r"""Leave-one-out accuracy of a weighted k-nearest-neighbour classifier; more is better.

    See :func:`hsplugin.metrics.functional.knn`. Exact over all rows up to ``max_samples``, beyond
    that from a fair sample of as many, as :class:`hsplugin.metrics.sampled.SampledMetric` draws it;
    from fewer where features are wide, such as 4096 of 2048 dimensions or 2048 of 8192. Takes O(N^2
    d) time and O(N d) memory.

    Args:
        k: How many neighbours vote, at most all other rows.
        temperature: Similarities are divided by it before the exponential.
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        seed: Chooses another sample.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If k or max_samples is no integer or temperature is no number.
        ValueError: If one of them is out of range.

    Example:
        >>> metric = KNNAccuracy(k=1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[2.0, 0.1], [0.1, 3.0]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        1.0
    """

    name = "knn"
    title = "kNN accuracy"
    settings = ("max_samples",)
    note = "of other rows' labels, 1 is best"
    higher_is_better = True
    most_products = 2.0**35

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.1,
        *,
        max_samples: int = 10_000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_samples=max_samples, seed=seed, **kwargs)
        self.k = check_integer("k", k, least=1)
        self.temperature = check_positive("temperature", temperature)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """A share."""
        return 0.0, 1.0

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        x, labels = x[labels >= 0], labels[labels >= 0]
        if len(x) < 2:
            raise MissingInputError(
                f"labels: {len(x)} row(s) have one that is not negative, and it takes two"
            )
        index = labels.unique(return_inverse=True)[1]
        right = right_votes(x, index, min(self.k, len(x) - 1), self.temperature)
        return right.double() / len(x)


def right_votes(
    x: Tensor,
    index: Tensor,
    k: int,
    temperature: float | None = None,
    halves: Tensor | float = 0.0,
) -> Tensor:
    """The number of rows whose class the k most similar other rows vote for.

    Args:
        x: Features (N, d).
        index: The classes of the rows (N,), counted from 0.
        k: How many rows vote, fewer than N.
        temperature: Of the votes' weights; if None, all weigh the same.
        halves: Subtracted from the products with each row: half their squared lengths, (N,), for
            the nearest rows in place of those with the largest products.
    """
    right, classes = index.new_zeros(()), int(index.max()) + 1
    for rows in torch.arange(len(x), device=x.device).split(max(1, _BLOCK // len(x))):
        similar = x[rows] @ x.T - halves
        similar[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        nearest = similar.topk(k).values
        closer, tied = similar > nearest[:, -1:], similar == nearest[:, -1:]
        share = (k - closer.sum(dim=1)) / tied.sum(dim=1)
        weights = torch.where(tied, share[:, None], closer)
        if temperature is not None:
            weights = weights * ((similar - nearest[:, :1]) / temperature).exp()
        votes = weights.new_zeros(classes, len(rows)).index_add_(0, index, weights.T)
        right = right + (votes.argmax(dim=0) == index[rows]).sum()
    return right
