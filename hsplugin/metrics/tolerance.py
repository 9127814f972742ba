"""Similarity that is kept within classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_integer
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.checks import check_labels
from hsplugin.metrics.directions import directions


def tolerance(features: Tensor, labels: Tensor, conditional: bool = False) -> Tensor:
    r"""Similarity kept within classes, :math:`E_{x,y}[f(x)^\top f(y)\, 1\{l(x) = l(y)\}]`.

    over pairs of distinct samples. As the paper's formula counts pairs of unlike class as zero,
    its value depends on the class sizes and is at most the chance that two samples share a class;
    ``conditional=True`` averages over the pairs of one class instead, within [-1, 1].

    Source: Wang & Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021,
    https://arxiv.org/abs/2012.09740.

    Args:
        features: Unit features, shape (N, d), N >= 2.
        labels: Integer class labels, shape (N,).
        conditional: Whether to average over the pairs of one class only.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor or labels hold no integers.
        ValueError: If a shape is wrong, a value is NaN or infinite, or ``conditional`` is asked
            for and no two samples share a class.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tolerance(x, torch.tensor([0, 0, 1]), conditional=True).item()
        1.0
    """
    check_features("features", features, min_rows=2)
    check_labels(labels, len(features))
    classes, index = torch.unique(labels, return_inverse=True)
    metric = Tolerance(len(classes), conditional=conditional, normalize=False)
    return metric.of(features, index)


class Tolerance(GeometryMetric):
    r"""Tolerance, :math:`E_{x,y}[f(x)^\top f(y)\, 1\{l(x) = l(y)\}]`; more is better.

    Streams with one sum of features a class. See :func:`hsplugin.metrics.functional.tolerance`.

    Args:
        num_classes: How many classes there are; labels lie in [0, num_classes).
        conditional: Whether to average over the pairs of one class only.
        normalize: Whether to scale features to unit length first.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If num_classes is no integer.
        ValueError: If num_classes < 1.

    Example:
        >>> metric = Tolerance(num_classes=2, conditional=True)
        >>> metric.update(torch.eye(2), torch.tensor([0, 1]))
        >>> metric.update(2 * torch.eye(2), torch.tensor([0, 1]))
        >>> metric.compute().item()
        1.0
    """

    name = "tolerance"
    title = "tolerance"
    takes = ("x", "labels")
    settings = ("num_classes", "conditional", "normalize")
    required = ("num_classes",)
    variants = {"": {}, "_conditional": {"conditional": True}}  # noqa: RUF012 - never changed
    higher_is_better = True
    class_sums: Tensor
    class_counts: Tensor
    squares: Tensor
    unknown_labels: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        conditional: bool = False,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check_integer("num_classes", num_classes, least=1)
        self.conditional = conditional
        self.normalize = normalize
        self.note = "over the pairs of one class, 1 is most" if conditional else "over all pairs"
        self._forbid_merging(normalize)
        sums = torch.zeros(num_classes, 0, dtype=torch.float64)
        counts = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("class_sums", sums, dist_reduce_fx="sum")
        self.add_state("class_counts", counts, dist_reduce_fx="sum")
        self.add_state("squares", sums.new_zeros(()), dist_reduce_fx="sum")
        self.add_state("unknown_labels", counts.new_zeros(()), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add labelled features.

        Args:
            features: Shape (N, d), of any floating dtype.
            labels: Integer class labels, shape (N,).

        Raises:
            TypeError: If features is no floating-point tensor or labels hold no integers.
            ValueError: If a shape is wrong, labels are missing, or d differs from earlier calls.
        """
        self._add(features, labels)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From -1 to 1 on the sphere."""
        most = 1.0 if self.normalize else float("inf")
        return -most, most

    def _check(self, features: Tensor, labels: Tensor, *, min_rows: int = 1) -> None:
        check_features("features", features, min_rows=min_rows)
        check_labels(labels, len(features))

    def _measure(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = (directions(features) if self.normalize else features).to(torch.float64)
        known = (labels >= 0) & (labels < self.num_classes)
        index = torch.where(known, labels, 0).long()
        x = x * known[:, None]
        counts = torch.zeros(self.num_classes, dtype=torch.int64, device=x.device)
        return {
            "class_sums": x.new_zeros(self.num_classes, x.shape[1]).index_add(0, index, x),
            "class_counts": counts.index_add_(0, index, known.long()),
            "squares": x.square().sum(),
            "unknown_labels": (~known).sum(),
            **self._count(features),
        }

    def _dim(self, states: States) -> int:
        return states["class_sums"].shape[1]

    def _family(self) -> tuple[Any, ...]:
        return ("classes", self.num_classes, self.normalize)

    def _value(self, shared: States) -> Tensor:
        if unknown := int(shared["unknown_labels"].detach()):
            raise ValueError(
                f"labels: {unknown} lie outside [0, {self.num_classes}); "
                f"set num_classes to the number of classes and call reset()"
            )
        counts = shared["class_counts"].to(torch.float64)
        total = counts.sum()
        pairs = (counts * (counts - 1)).sum() if self.conditional else total * (total - 1)
        if self.conditional and pairs == 0:
            raise ValueError(
                "labels: no two samples share a class, so conditional=True has nothing to "
                "average; pass more samples or conditional=False"
            )
        return (shared["class_sums"].square().sum() - shared["squares"]) / pairs
