"""First and second moments of features, and the scores that are read off their spectra.

One float64 matrix holds the moments, so that they can be merged over batches and ranks in any
order by the stable pairwise formula (Chan, Golub & LeVeque 1983) instead of by raw sums of
squares, which cancel when the mean is large beside the spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """What is known of N features of dimension d.

    Attributes:
        rows: N, a float64 scalar.
        mean: Mean of the features, shape (d,).
        scatter: Sum of outer products of the centred features, shape (d, d).
    """

    rows: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """Read what :func:`pack_moments` wrote."""
        return cls(packed[0, 0], packed[0, 1:], packed[1:, 1:])

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (N, d)."""
        return cls.unpack(pack_moments(features))


def pack_moments(features: Tensor) -> Tensor:
    """Moments of features (N, d) as one (d + 1, d + 1) float64 matrix: count, mean, scatter."""
    size = features.shape[1] + 1
    return with_features(features.new_zeros(size, size, dtype=torch.float64), features)


def with_features(packed: Tensor, features: Tensor) -> Tensor:
    """Packed moments (d + 1, d + 1) with further features (N, d) merged in."""
    x = features.to(torch.float64)
    before = packed[0, 0]
    total = before + len(x)
    mean = x.mean(dim=0)
    step = mean - packed[0, 1:]
    # As one more row, what the two means differ by is added by the same product.
    apart = step * (before * len(x) / total).sqrt()
    centred = torch.cat([x - mean, apart[None]])
    merged = packed.clone()
    merged[0, 0] = total
    merged[0, 1:] += step * (len(x) / total)
    merged[1:, 1:].addmm_(centred.T, centred)
    return merged


def instance_moments(views: Tensor) -> tuple[Tensor, Tensor]:
    """The instances' means (N, d), and the sum of the covariances of their views (d, d)."""
    x = views.to(torch.float64)
    means = x.mean(dim=1)
    centred = (x - means[:, None]).flatten(0, 1)
    return means, centred.T @ centred / views.shape[1]


def merge_moments(packed: Tensor) -> Tensor:
    """Moments of all features together from those of k parts, (k, d + 1, d + 1)."""
    counts, means, scatters = packed[:, 0, 0], packed[:, 0, 1:], packed[:, 1:, 1:]
    merged = torch.zeros_like(packed[0])
    total = counts.sum()
    mean = (counts[:, None] * means).sum(dim=0) / total.clamp(min=1)
    apart = (means - mean) * counts.sqrt()[:, None]
    merged[0, 0] = total
    merged[0, 1:] = mean
    merged[1:, 1:] = scatters.sum(dim=0) + apart.T @ apart
    return merged


def covariance_spectrum(moments: Moments) -> Tensor:
    """Eigenvalues of the covariance (divided by N), in descending order.

    Those within the rounding error of their computation are set to zero, so that a collapsed or
    rank-deficient representation shows zeros and not noise.
    """
    spectrum = torch.linalg.eigvalsh(moments.scatter / moments.rows).flip(0).clamp(min=0)
    rounding = len(spectrum) * torch.finfo(torch.float64).eps
    floor = torch.maximum(
        rounding * spectrum[0], rounding**2 * (moments.mean.square().sum() + spectrum.sum())
    )
    return torch.where(spectrum > floor, spectrum, 0.0)


def singular_values(moments: Moments) -> Tensor:
    """Singular values of the uncentred features, descending, from the eigenvalues of X^T X.

    The root halves the digits: values below 1e-8 of the largest are rounding noise of that size.
    """
    gram = moments.scatter + moments.rows * torch.outer(moments.mean, moments.mean)
    spectrum = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    rank = min(int(moments.rows), len(spectrum))
    values: Tensor = spectrum[:rank].sqrt()
    return values


def entropy_rank(weights: Tensor, epsilon: float = 0.0) -> Tensor:
    """exp(-sum p log p) of p = weights / sum(weights) + epsilon; zero if all weights are zero."""
    total = weights.sum()
    p = weights / torch.where(total > 0, total, 1.0) + epsilon
    return torch.where(total > 0, torch.special.entr(p).sum().exp(), 0.0)


def nesum(spectrum: Tensor) -> Tensor:
    """Sum of the covariance's eigenvalues over the largest; zero without any variance."""
    total: Tensor = spectrum.sum() / torch.where(spectrum[0] > 0, spectrum[0], 1.0)
    return total


def wasserstein_uniformity(mean: Tensor, spectrum: Tensor) -> Tensor:
    """Quadratic Wasserstein distance between Gaussian fits of the features and of the sphere."""
    dim = len(spectrum)
    squared = mean.square().sum() + 1 + spectrum.sum() - 2 / dim**0.5 * spectrum.sqrt().sum()
    distance: Tensor = squared.clamp(min=0).sqrt()
    return distance


def alpha_req(spectrum: Tensor, fit_range: tuple[int, int]) -> Tensor:
    """Minus the least-squares slope of log eigenvalue over log index; NaN with too few of them."""
    first, last = fit_range
    spectrum = spectrum[first - 1 : last]
    spectrum = spectrum[spectrum > 0]
    if len(spectrum) < 2:
        return spectrum.new_tensor(float("nan"))
    index = torch.arange(first, first + len(spectrum), dtype=torch.float64, device=spectrum.device)
    x = index.log() - index.log().mean()
    alpha: Tensor = -(x @ spectrum.log()) / (x @ x)
    return alpha


def check_fit_range(fit_range: tuple[int, int], dim: int | None = None) -> tuple[int, int]:
    """Refuse a range of eigenvalue indices, counted from one, that holds fewer than two.

    Raises:
        ValueError: If it is no such range, or features of ``dim`` dimensions have too few in it.
    """
    first, last = fit_range
    if not 1 <= first < last:
        raise ValueError(f"fit_range must be (first, last) with 1 <= first < last, got {fit_range}")
    if dim is not None and dim < first + 1:
        raise ValueError(
            f"fit_range={fit_range} holds fewer than two of the {dim} eigenvalues that features "
            f"of dimension {dim} have; pass a range that starts earlier, such as (1, {dim})"
        )
    return first, last


def lidar(between: Moments, within: Tensor, delta: float, epsilon: float) -> Tensor:
    """Entropy rank of the discriminant matrix, from the instances' means and mean spread."""
    dim = len(within)
    identity = torch.eye(dim, dtype=within.dtype, device=within.device)
    factor = torch.linalg.cholesky(within / between.rows + delta * identity)
    half = torch.linalg.solve_triangular(factor, between.scatter / between.rows, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    eigenvalues = torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0)
    # Identical instances leave rounding errors, which have no rank.
    magnitude = between.mean.square().sum() / delta
    floor = (dim * torch.finfo(torch.float64).eps) ** 2 * magnitude
    return entropy_rank(torch.where(eigenvalues > floor, eigenvalues, 0.0), epsilon)
