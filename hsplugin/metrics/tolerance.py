"""Similarity that is kept within classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_integer
from hsplugin.functional import unit_rows
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.checks import check_labels
from hsplugin.metrics.functional import tolerance_of


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
        self._set_apart(normalize)
        zero = torch.zeros((), dtype=torch.float64)
        sums = torch.zeros(num_classes, 0, dtype=torch.float64)
        counts = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("class_sums", sums, dist_reduce_fx="sum")
        self.add_state("class_counts", counts, dist_reduce_fx="sum")
        self.add_state("squares", zero, dist_reduce_fx="sum")
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
        check_features("features", features)
        check_labels(labels, len(features))
        features = features.detach()
        x = (unit_rows(features) if self.normalize else features).to(torch.float64)
        known_dim = self.class_sums.shape[1]
        if known_dim not in (0, x.shape[1]):
            raise ValueError(
                f"features have dimension {x.shape[1]}, but {known_dim} in earlier calls; "
                f"call reset() before measuring another representation"
            )
        known = (labels >= 0) & (labels < self.num_classes)
        index = torch.where(known, labels, 0).long()
        x = x * known[:, None]
        batch = x.new_zeros(self.num_classes, x.shape[1]).index_add_(0, index, x)
        self.class_sums = self.class_sums + batch if known_dim else batch
        self.class_counts = self.class_counts.index_add(0, index, known.long())
        self.squares = self.squares + x.square().sum()
        self.unknown_labels = self.unknown_labels + (~known).sum()
        self._count(features)

    def compute(self) -> Tensor:
        """Return the tolerance of all features seen.

        Raises:
            ValueError: If fewer than two rows were seen, features were NaN or infinite, labels
                out of range, or ``conditional`` has no two samples of one class.
        """
        self._check_seen()
        if unknown := int(self.unknown_labels):
            self._refuse(
                f"labels: {unknown} lie outside [0, {self.num_classes}); "
                f"set num_classes to the number of classes and call reset()"
            )
        try:
            return tolerance_of(self.class_sums, self.class_counts, self.squares, self.conditional)
        except ValueError as error:
            self._refuse(str(error))
            raise
