"""Similarity of the representations of two encoders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.checks import check_finite
from hsplugin.metrics.moments import Moments
from hsplugin.metrics.packing import in_range, merge_moments, pack_moments


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    r"""Linear centred kernel alignment of two sets of features of the same samples.

    .. math::
        \frac{\|X^\top Y\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    with the features of both centred. In [0, 1]; 1 if they are equal up to rotation and scale. It
    says how alike two encoders are, not how good. NaN if the features of one are all equal.

    With fewer rows than dimensions it is near 1 for any two encoders; ``unbiased`` takes the
    estimator of HSIC that leaves out each sample's product with itself, and is about 0 for
    features that have nothing in common, and sometimes below.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019,
    https://arxiv.org/abs/1905.00414. Unbiased: Song et al., "Feature selection via dependence
    maximization", JMLR 2012, as Nguyen et al. (https://arxiv.org/abs/2010.15327) use it.

    Args:
        x: Features of one encoder, shape (N, d), N >= 2.
        y: Features of the other for the same samples, shape (N, e).
        unbiased: Whether to take the unbiased estimator, which needs N >= 4 and O(N^2) memory.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If x or y is no floating-point tensor.
        ValueError: If a shape is wrong, there are too few rows, or a value is NaN or infinite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)).item(), 6)
        1.0
    """
    if not unbiased:
        return LinearCKA().of(x, y)
    _check_encoders(x, y, min_rows=4)
    check_finite("x", x)
    check_finite("y", y)
    k, load = (_products_with_others(features) for features in (x, y))
    return _hsic(k, load) / (_hsic(k, k) * _hsic(load, load)).sqrt()


class LinearCKA(GeometryMetric):
    r"""Linear centred kernel alignment of two encoders; 1 if equal up to rotation and scale.

    Streams with the moments of both encoders' features side by side, O((d + e)^2) numbers. See
    :func:`hsplugin.metrics.functional.linear_cka`.

    Example:
        >>> metric = LinearCKA()
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> metric.update(x[:2], 3 * x[:2].flip(1))
        >>> metric.update(x[2:], 3 * x[2:].flip(1))
        >>> round(metric.compute().item(), 6)
        1.0
    """

    name = "linear_cka"
    title = "linear CKA"
    takes = ("x", "y")
    note = "1 is alike"
    may_be_nan = True
    higher_is_better = None
    moments: Tensor
    width: Tensor

    _arguments = ("x", "y")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)
        # One number for each dimension of x, so that how many there are is known from the shape.
        self.add_state("width", torch.zeros(0), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the features of two encoders for the same samples.

        Args:
            x: Features of one encoder, shape (N, d), of any floating dtype, N >= 1.
            y: Features of the other, shape (N, e).

        Raises:
            TypeError: If x or y is no floating-point tensor.
            ValueError: If a shape is wrong or a dimension differs from that of earlier calls.
        """
        self._add(x, y)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to 1."""
        return 0.0, 1.0

    def _check(self, x: Tensor, y: Tensor, *, min_rows: int = 1) -> None:
        _check_encoders(x, y, min_rows=min_rows)

    def _measure(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        both = torch.cat([x.to(torch.float64), y.to(torch.float64)], dim=1)
        width = torch.zeros(x.shape[1], device=x.device)
        return {"moments": pack_moments(both), "width": width, **self._count(both)}

    def _check_dims(self, parts: Iterable[States]) -> None:
        widths = [(len(part["width"]), len(part["moments"]) - 1) for part in parts]
        seen = [(first, both - first) for first, both in widths if first]
        if len(set(seen)) > 1:
            raise ValueError(
                f"x and y have dimensions {seen[-1]}, but {seen[0]} in earlier calls; call reset() "
                f"before comparing other encoders"
            )

    def _value(self, shared: States) -> Tensor:
        moments, width = Moments.unpack(shared["moments"]), len(shared["width"])
        within_x, within_y = moments.scatter[:width, :width], moments.scatter[width:, width:]
        # Over the traces, so that no square of a square overflows.
        x, y = within_x.trace(), within_y.trace()
        between = moments.scatter[:width, width:] / (x.sqrt() * y.sqrt())
        return between.square().sum() / ((within_x / x).norm() * (within_y / y).norm())


def _check_encoders(x: Tensor, y: Tensor, *, min_rows: int) -> None:
    check_features("x", x, min_rows=min_rows)
    check_features("y", y, min_rows=min_rows)
    if len(x) != len(y):
        raise ValueError(
            f"x and y must be features of the same samples, got {len(x)} and {len(y)} rows"
        )


def _products_with_others(features: Tensor) -> Tensor:
    """Inner products of centred rows over the largest, zero on the diagonal."""
    x, _ = in_range(features)
    x = x - x.mean(dim=0)
    products = x @ x.T
    products = products / products.diagonal().amax()
    return products.fill_diagonal_(0.0)


def _hsic(k: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimator of Song et al. up to a factor that cancels."""
    n = len(k)
    sums, others = k.sum(dim=0), other.sum(dim=0)
    return (
        (k * other).sum()
        + sums.sum() * others.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (sums @ others)
    )
