"""The metrics as functions of features that are all there.

As the losses, none of them normalises: those defined on the unit sphere (alignment, uniformity,
Wasserstein uniformity, tolerance) expect unit rows, which :func:`hsplugin.functional.unit_rows`
makes and the classes of :mod:`hsplugin.metrics` make by default.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin.checks import check_positive
from hsplugin.functional import align_loss
from hsplugin.metrics import spectrum
from hsplugin.metrics.checks import check_finite, check_labels, check_sample, check_views
from hsplugin.potential import log_mean_potential


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Mean distance of positive pairs, :math:`\frac1N \sum_i \|x_i - y_i\|_2^\alpha`.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242. On unit rows it lies in
    [0, 2^alpha]; less is better, and zero is also what a collapsed representation has.

    Args:
        x: Unit features of one view, shape (N, d), N >= 1.
        y: Unit features of the other view, same shape.
        alpha: The exponent, above 0.

    Returns:
        A scalar.

    Raises:
        TypeError: If x or y is no floating-point tensor, or their dtypes differ.
        ValueError: If shapes differ or are wrong, alpha <= 0, or a value is NaN or infinite.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(2.)
    """
    value = align_loss(x, y, alpha)
    check_finite("x", x)
    check_finite("y", y)
    return value


def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    r"""Log-mean Gaussian potential, :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242. On unit rows it lies in
    [-4t, 0]; less is better, down to :func:`hsplugin.uniformity_optimum`.

    Args:
        features: Unit features, shape (N, d), N >= 2.
        t: Inverse width of the Gaussian, above 0.

    Returns:
        A scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong, t is out of range, or a value is NaN or infinite.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """
    check_sample("features", features)
    return log_mean_potential(features, t)


def wasserstein_uniformity(features: Tensor) -> Tensor:
    r"""Distance of the features from the uniform distribution, as Gaussians see it.

    .. math::
        W_2 = \sqrt{\|\mu\|^2 + 1 + \mathrm{tr}\,\Sigma
              - \tfrac{2}{\sqrt d} \mathrm{tr}\,\Sigma^{1/2}}

    the quadratic Wasserstein distance between N(mu, Sigma) and N(0, I/d), with Sigma divided by N.
    On unit rows it lies in [0, sqrt 2]; less is better, and dimensions that died are seen.

    Source: Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning", ICLR 2024.
    Some reimplementations divide the covariance by N - 1, which makes the value depend on N for
    repeated data, and take the root of each entry where the formula has the root of the matrix.

    Args:
        features: Unit features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(wasserstein_uniformity(corners).item(), 6)
        0.0
    """
    check_sample("features", features)
    moments = spectrum.Moments.of(features)
    return spectrum.wasserstein_uniformity(moments.mean, spectrum.covariance_spectrum(moments))


def rankme(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    r"""Smooth rank of the uncentred feature matrix.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k = \frac{\sigma_k}{\|\sigma\|_1} + \epsilon

    over its min(N, d) singular values. From about 1 (collapse) to min(N, d); more is better.

    Source: Garrido et al., ICML 2023, https://arxiv.org/abs/2210.02885. Some public code (reptrix)
    takes the eigenvalues of the covariance instead; that is :func:`effective_rank`.

    Args:
        features: Features, shape (N, d), N >= 2.
        epsilon: Added to each p, as in the paper.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong, epsilon <= 0, or a value is NaN or infinite.

    Example:
        >>> round(rankme(torch.eye(4)).item(), 3)
        4.0
    """
    check_sample("features", features)
    epsilon = check_positive("epsilon", epsilon)
    return spectrum.entropy_rank(torch.linalg.svdvals(features.to(torch.float64)), epsilon)


def effective_rank(features: Tensor) -> Tensor:
    r"""Effective rank of the covariance, :math:`\exp(-\sum_k p_k \log p_k)`.

    with :math:`p_k = \lambda_k / \sum_j \lambda_j` over its eigenvalues. From 1 to d, or 0 if there
    is no variance at all; more is better. It differs from :func:`rankme` in that the mean is
    taken out and directions count by variance, not by its root.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007, applied to the covariance matrix.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    check_sample("features", features)
    return spectrum.entropy_rank(_covariance_spectrum(features))


def alpha_req(features: Tensor, fit_range: tuple[int, int] = (10, 100)) -> Tensor:
    r"""Decay of the covariance's spectrum: alpha in :math:`\lambda_k \propto k^{-\alpha}`.

    The least-squares slope of log eigenvalue over log index within ``fit_range`` (first and last
    index, counted from one). A value near 1 goes with good downstream accuracy in the paper; far
    above it the representation has few directions, far below it is noise-like. NaN if fewer than
    two eigenvalues in the range are above zero, as after a collapse.

    Source: Agrawal et al., "alpha-ReQ", NeurIPS 2022. The authors' code (reptrix), after Stringer
    et al. (2019), weighs index k by 1/k in the fit; the plain fit is made here.

    Args:
        features: Features, shape (N, d), N >= 2.
        fit_range: First and last index of the eigenvalues that are fitted.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape or range is wrong, d leaves fewer than two eigenvalues in the
            range, or a value is NaN or infinite.

    Example:
        >>> deviations = torch.arange(1, 13).pow(-0.5).diag()
        >>> round(alpha_req(torch.cat([deviations, -deviations]), (1, 12)).item(), 4)
        1.0
    """
    check_sample("features", features)
    fit_range = spectrum.check_fit_range(fit_range, features.shape[1])
    return spectrum.alpha_req(_covariance_spectrum(features), fit_range)


def nesum(features: Tensor) -> Tensor:
    r"""Normalised eigenvalue sum of the covariance, :math:`\sum_k \lambda_k / \lambda_1`.

    From 1 to d (whitened), or 0 if there is no variance at all; more is better.

    Source: He & Ozay, "Exploring the Gap between Collapsed & Whitened Features in
    Self-Supervised Learning", ICML 2022.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> round(nesum(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    check_sample("features", features)
    return spectrum.nesum(_covariance_spectrum(features))


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
    check_sample("features", features)
    check_labels(labels, len(features))
    x = features.to(torch.float64)
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, index, x)
    return tolerance_of(sums, counts, x.square().sum(), conditional)


def tolerance_of(sums: Tensor, counts: Tensor, squares: Tensor, conditional: bool) -> Tensor:
    """Tolerance from each class's sum (C, d) and count (C,), and all squared lengths' sum.

    Raises:
        ValueError: If ``conditional`` is asked for and no two samples share a class.
    """
    counts = counts.to(torch.float64)
    total = counts.sum()
    pairs = (counts * (counts - 1)).sum() if conditional else total * (total - 1)
    if conditional and pairs == 0:
        raise ValueError(
            "labels: no two samples share a class, so conditional=True has nothing to average; "
            "pass more samples or conditional=False"
        )
    return (sums.square().sum() - squares) / pairs


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
    check_views(views)
    if len(views) < 2:
        raise ValueError(f"views holds {len(views)} instance, but at least 2 are compared")
    check_finite("views", views)
    delta, epsilon = check_positive("delta", delta), check_positive("epsilon", epsilon)
    means, within = spectrum.instance_moments(views)
    return spectrum.lidar(spectrum.Moments.of(means), within, delta, epsilon)


def _covariance_spectrum(features: Tensor) -> Tensor:
    return spectrum.covariance_spectrum(spectrum.Moments.of(features))
