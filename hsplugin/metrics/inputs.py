"""From features, a second view and labels to what a metric takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hsplugin.metrics.base import GeometryMetric


class MissingInputError(ValueError):
    """A metric takes something that was not given, such as a second view or labels."""


def select_inputs(
    takes: Sequence[str],
    optional: Sequence[str],
    x: Tensor,
    y: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The arguments of a metric's ``update``, from features, their positives and their labels.

    Raises:
        MissingInputError: If there is no second view or no labels and the metric takes them.
    """
    views = torch.stack([x, y], dim=1) if "views" in takes and y is not None else None
    given = {"x": x, "y": y, "labels": labels, "views": views}
    told = {"y": "a pair of views", "views": "a pair of views", "labels": "labels in the batch"}
    chosen = []
    for name in takes:
        value = given[name]
        if value is None:
            raise MissingInputError(f"it needs {told[name]}, and there is none")
        chosen.append(value)
    return (*chosen, *(value for name in optional if (value := given[name]) is not None))


class TakesFeatures(GeometryMetric):
    """Of the metrics that take features alone: how they are added."""

    def update(self, features: Tensor) -> None:
        """Add features.

        Args:
            features: Shape (N, d), of any floating dtype, N >= 1.

        Raises:
            TypeError: If features is no floating-point tensor.
            ValueError: If its shape is wrong or d differs from that of earlier calls.
        """
        self._add(features)
