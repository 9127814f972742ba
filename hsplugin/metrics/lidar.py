"""Linear discriminant analysis rank over the views of each instance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_positive
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.checks import check_views
from hsplugin.metrics.moments import Moments, entropy_rank, largest_entropy_rank
from hsplugin.metrics.packing import merge_moments, pack_moments


def lidar(views: Tensor, delta: float = 1e-4, epsilon: float = 1e-7) -> Tensor:
    r"""Rank of what tells instances apart: linear discriminant analysis rank.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \quad p = \frac{\lambda}{\|\lambda\|_1} + \epsilon,
        \quad \lambda = \mathrm{eig}\bigl(\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}\bigr)

    where Sigma_b is the covariance of the instances' means and Sigma_w the mean covariance of an
    instance's views plus delta I. From 0 (all instances alike) over 1 to min(N - 1, d); more is
    better. The paper uses about 1000 instances of 50 views; delta weighs against the scale of the
    features. The paper defines both covariances by expectations, so they divide by N and by N q.
    Code that divides by N - 1 and N (q - 1), as stable-pretraining's, has at delta the value that
    this has at delta (q - 1) / q: for two views, that of half the delta. reptrix takes the
    eigenvalues of the covariance of the matrix's rows where the paper takes those of the matrix.

    Source: Thilak et al., ICLR 2024, https://arxiv.org/abs/2312.04000.

    Args:
        views: Features of q views of each of N instances, shape (N, q, d), N >= 2, q >= 2.
        delta: Added to the diagonal of Sigma_w, above 0.
        epsilon: Added to each p, above 0.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If views is no floating-point tensor.
        ValueError: If the shape is wrong, delta or epsilon <= 0, or a value is NaN or infinite.

    Example:
        >>> views = torch.eye(4)[:, None].repeat(1, 2, 1)
        >>> round(lidar(views).item(), 3)
        3.0
    """
    return LiDAR(delta, epsilon).of(views)


class LiDAR(GeometryMetric):
    r"""Rank of :math:`\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}`; more is better.

    Streams with the moments of the instances' means and the sum of the covariances within them. See
    :func:`hsplugin.metrics.functional.lidar`. Takes the features as they are, as the paper does.

    Args:
        delta: Added to the diagonal of Sigma_w, above 0.
        epsilon: Added to each p, above 0.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If delta or epsilon is no number.
        ValueError: If delta or epsilon <= 0.

    Example:
        >>> metric = LiDAR()
        >>> metric.update(torch.eye(4)[:, None].repeat(1, 2, 1))
        >>> round(metric.compute().item(), 3)
        3.0
    """

    name = "lidar"
    title = "LiDAR"
    takes = ("views",)
    needs_matrix = True
    note = "of {most}, more is better"
    higher_is_better = True
    moments: Tensor
    within: Tensor

    _arguments = ("views",)

    def __init__(self, delta: float = 1e-4, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delta = check_positive("delta", delta)
        self.epsilon = check_positive("epsilon", epsilon)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)
        self.add_state("within", zero, dist_reduce_fx="sum")

    def update(self, views: Tensor) -> None:
        """Add instances, each with all its views.

        Args:
            views: Shape (N, q, d) with q >= 2, such as ``torch.stack([z_a, z_b], dim=1)``.

        Raises:
            TypeError: If views is no floating-point tensor.
            ValueError: If its shape is wrong or d differs from that of earlier calls.
        """
        self._add(views)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to that of min(N - 1, d) equal eigenvalues, which epsilon lifts a little."""
        return 0.0, largest_entropy_rank(min(rows - 1, dim), dim, self.epsilon)

    def _check(self, views: Tensor, *, min_rows: int = 1) -> None:
        check_views(views, min_rows=min_rows)

    def _measure(self, views: Tensor) -> dict[str, Tensor]:
        x = views.to(torch.float64)
        # Helmert's contrasts have the scatter of the views about their mean, in one row less.
        k = torch.arange(1, x.shape[1], dtype=x.dtype, device=x.device)[:, None]
        apart = (x.cumsum(dim=1)[:, :-1] - k * x[:, 1:]) / (k * (k + 1)).sqrt()
        apart = apart.flatten(0, 1)
        within = apart.T @ apart / x.shape[1]
        return {"moments": pack_moments(x.mean(dim=1)), "within": within, **self._count(views)}

    def _dim(self, states: States) -> int:
        return len(states["moments"]) - 1

    def _value(self, shared: States) -> Tensor:
        between, within = Moments.unpack(shared["moments"]), shared["within"]
        if not within.isfinite().all():
            return within.new_full((), float("inf"))
        identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
        factor, lost = torch.linalg.cholesky_ex(within / between.rows + self.delta * identity)
        if lost:  # delta is less than the rounding of the rest
            return within.new_full((), float("inf"))
        # The rank does not depend on the scale of what is whitened.
        scatter = between.scatter / between.rows
        half = torch.linalg.solve_triangular(factor, scatter, upper=False)
        whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
        eigenvalues = torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0)
        # Identical instances leave rounding errors, which have no rank.
        errors = torch.linalg.solve_triangular(factor, between.mean.diag(), upper=False)
        rounding = len(within) * torch.finfo(torch.float64).eps
        floor = rounding**2 * errors.square().sum()
        return entropy_rank(torch.where(eigenvalues > floor, eigenvalues, 0.0), self.epsilon)
