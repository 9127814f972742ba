"""What the metrics refuse beyond :mod:`hsplugin.checks`; those that read values say so."""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin import checks
from hsplugin.checks import check_features


def check_views(views: object, *, min_rows: int = 1) -> None:
    """Refuse anything but a floating (N, q, d) tensor of q >= 2 views, N >= ``min_rows``.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If its shape is wrong.
    """
    if isinstance(views, Tensor) and (views.dim() != 3 or views.shape[1] < 2):
        raise ValueError(
            f"views must have shape (N, q, d) with q >= 2 views of each instance, got "
            f"{tuple(views.shape)}; use torch.stack([z_a, z_b], dim=1) for two views"
        )
    check_features(
        "views", views.flatten(1) if isinstance(views, Tensor) else views, min_rows=min_rows
    )


def check_labels(labels: object, rows: int) -> None:
    """Refuse anything but an integer tensor (rows,).

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If it is missing or its shape is wrong.
    """
    if labels is None:
        raise ValueError("labels is missing; pass an integer class label for each row of features")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() and labels.dim() > 1:
        raise TypeError(
            f"labels must be integers, got {labels.dtype} {tuple(labels.shape)}, which looks like "
            f"a second view; in a MetricCollection, pass views and labels by keyword: "
            f"update(features=z_a, x=z_a, y=z_b, labels=...)"
        )
    checks.check_labels(labels, rows)


def check_finite(name: str, features: Tensor) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ValueError: If there are any.
    """
    finite = torch.isfinite(features)
    if not finite.all():
        rows = int((~finite.flatten(1).all(dim=1)).sum())
        raise ValueError(f"{name}: {rows} of {len(features)} rows hold NaN or infinite values")
