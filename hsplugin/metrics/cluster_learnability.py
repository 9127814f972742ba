"""How well nearest neighbours tell the clusters that k-means finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_integer
from hsplugin.metrics.inputs import TakesFeatures
from hsplugin.metrics.knn import right_votes
from hsplugin.metrics.sampled import SampledMetric

# Similarities held at once.
_BLOCK = 2**22
_MOST_ROUNDS = 300


def cluster_learnability(
    features: Tensor, clusters: int | None = None, k: int = 1, seed: int = 0
) -> Tensor:
    r"""Share of rows whose k-means cluster the k nearest other rows vote for.

    .. math::
        \frac1N \sum_i 1\Bigl\{c_i = \arg\max_c \sum_{j \in N_k(i)} 1\{c_j = c\}\Bigr\}

    with the clusters c of k-means (Lloyd's rounds until no row changes its cluster, at most 300)
    and the k nearest rows other than i. In [0, 1]; more means that the clusters are easier to
    learn. It is 1 too where all rows are equal, so read it beside
    :func:`hsplugin.metrics.functional.intrinsic_dimension`.

    Source: the cluster learnability (CL) of CLID, Lu et al., "Using Representation Expressiveness
    and Learnability to Evaluate Self-Supervised Learning Methods",
    https://arxiv.org/abs/2206.01251: a kNN classifier that predicts the labels of k-means. By
    default there are sqrt(N) clusters and one neighbour, as in a reimplementation of it. Ours are:
    every row is predicted from all others, where they hold out a half; and the first centres are
    drawn by k-means++ from rows in an order that depends on their values alone, with fixed random
    numbers, so that the same rows always give the same value. Another ``seed`` may end in other
    clusters.

    Args:
        features: Unit features, shape (N, d), N >= 3.
        clusters: Number of clusters, at most N; the square root of N, rounded, if None.
        k: How many neighbours vote.
        seed: Chooses other first centres.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor, or clusters or k no integer.
        ValueError: If the shape is wrong, a value is NaN or infinite, clusters < 2 or k < 1.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> cluster_learnability(x, clusters=2).item()
        1.0
    """
    return ClusterLearnability(clusters, k, normalize=False, seed=seed).of(features)


class ClusterLearnability(TakesFeatures, SampledMetric):
    r"""Leave-one-out accuracy of nearest neighbours on clusters of k-means; more is better.

    See :func:`hsplugin.metrics.functional.cluster_learnability`. Exact over all rows up to
    ``max_samples``, beyond that from a fair sample of as many; from fewer where features are wide,
    such as 4096 of 2048 dimensions or 2048 of 8192. Takes O(N^2 d) time and O(N d) memory.

    Args:
        clusters: Number of clusters, at most all rows; the square root of the rows if None.
        k: How many neighbours vote, at most all other rows.
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        normalize: Whether to scale features to unit length first.
        seed: Chooses another sample and other first centres.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If clusters, k or max_samples is no integer.
        ValueError: If clusters < 2, k < 1 or max_samples < 2.

    Example:
        >>> metric = ClusterLearnability(clusters=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> metric.update(torch.tensor([[2.0, 0.1], [0.1, 3.0]]))
        >>> metric.compute().item()
        1.0
    """

    name = "cluster_learnability"
    title = "cluster learnability"
    settings = ("max_samples", "normalize")
    note = "of neighbours' clusters, 1 is easiest to learn"
    least_rows = 3
    higher_is_better = True
    most_products = 2.0**35

    def __init__(
        self,
        clusters: int | None = None,
        k: int = 1,
        *,
        max_samples: int = 10_000,
        normalize: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_samples=max_samples, normalize=normalize, seed=seed, **kwargs)
        self.clusters = None if clusters is None else check_integer("clusters", clusters, least=2)
        self.k = check_integer("k", k, least=1)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """A share."""
        return 0.0, 1.0

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        # Squares of large features may overflow.
        largest = x.abs().amax()
        x = x / torch.where(largest > 0, largest, 1.0)
        clusters = round(len(x) ** 0.5) if self.clusters is None else self.clusters
        index = k_means(x, first_centres(x, min(clusters, len(x)), self.seed))
        halves = x.square().sum(dim=1) / 2
        right = right_votes(x, index, min(self.k, len(x) - 1), halves=halves)
        return right.double() / len(x)


def first_centres(x: Tensor, clusters: int, seed: int) -> Tensor:
    """Rows drawn by k-means++, each by its squared distance to the nearest one before.

    Args:
        x: Features (N, d), in any order.
        clusters: How many, at most N.
        seed: Of the random numbers, which leave those of torch alone.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x)
    x = x[(x @ direction).argsort()]
    numbers = torch.rand(clusters, generator=generator, dtype=torch.float64).to(x.device)
    apart = x.new_ones(len(x), dtype=torch.float64)
    chosen = []
    for number in numbers:
        sums = apart.cumsum(0)
        row = torch.searchsorted(sums, number * sums[-1], right=True).clamp(max=len(x) - 1)
        chosen.append(x[row])
        squares = (x - chosen[-1]).square().sum(dim=1).double()
        apart = squares if len(chosen) == 1 else torch.minimum(apart, squares)
    return torch.stack(chosen)


def k_means(x: Tensor, centres: Tensor) -> Tensor:
    """The cluster of each row (N,), by Lloyd's rounds from these centres (K, d).

    A cluster without a row keeps its centre. Of centres that are as near, the first wins.
    """
    parts = x.split(max(1, _BLOCK // len(centres)))
    index = None
    for _ in range(_MOST_ROUNDS):
        halves = centres.square().sum(dim=1) / 2
        nearest = torch.cat([(part @ centres.T - halves).argmax(dim=1) for part in parts])
        if index is not None and torch.equal(nearest, index):
            break
        index = nearest
        # As a product, which adds in the same order every time on a GPU too.
        totals, counts = torch.zeros_like(centres), centres.new_zeros(len(centres))
        for part, own in zip(parts, index.split(len(parts[0])), strict=True):
            belongs = torch.nn.functional.one_hot(own, len(centres)).to(part)
            totals += belongs.T @ part
            counts += belongs.sum(dim=0)
        centres = torch.where(counts[:, None] > 0, totals / counts.clamp(min=1)[:, None], centres)
    assert index is not None
    return index
