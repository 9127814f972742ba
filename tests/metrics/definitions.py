"""The metrics again, in numpy and scipy at float64, from the formulas of the papers."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import sklearn.metrics.pairwise


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def alignment(x, y, alpha=2.0):
    return np.mean(
        [scipy.spatial.distance.euclidean(a, b) ** alpha for a, b in zip(x, y, strict=True)]
    )


def uniformity(x, t=2.0):
    distances = scipy.spatial.distance.pdist(np.asarray(x, dtype=np.float64), "sqeuclidean")
    return scipy.special.logsumexp(-t * distances) - np.log(len(distances))


def wasserstein_uniformity(x):
    x = np.asarray(x, dtype=np.float64)
    covariance = np.cov(x.T, bias=True)
    root = scipy.linalg.sqrtm(covariance).real
    squared = (
        np.sum(x.mean(0) ** 2) + 1 + np.trace(covariance) - 2 / np.sqrt(x.shape[1]) * np.trace(root)
    )
    return np.sqrt(max(squared, 0))


def entropy_rank(weights, epsilon=0.0):
    return np.exp(np.sum(scipy.special.entr(weights / np.sum(weights) + epsilon)))


def rankme(x, epsilon=1e-7):
    return entropy_rank(scipy.linalg.svdvals(np.asarray(x, dtype=np.float64)), epsilon)


def eigenvalues(x):
    x = np.asarray(x, dtype=np.float64)
    centred = x - x.mean(axis=0)
    squares = scipy.linalg.svdvals(centred) ** 2 / len(x)
    return np.concatenate([squares, np.zeros(max(0, x.shape[1] - len(x)))])


def effective_rank(x):
    return entropy_rank(eigenvalues(x))


def alpha_req(x, first, last):
    spectrum = eigenvalues(x)[first - 1 : last]
    index = np.arange(first, first + len(spectrum))
    return -scipy.stats.linregress(np.log(index), np.log(spectrum)).slope


def nesum(x):
    spectrum = eigenvalues(x)
    return spectrum.sum() / spectrum[0]


def tolerance(x, labels, conditional=False):
    similar = sklearn.metrics.pairwise.linear_kernel(np.asarray(x, dtype=np.float64))
    off_diagonal = ~np.eye(len(x), dtype=bool)
    same = (labels[:, None] == labels[None, :]) & off_diagonal
    return similar[same].sum() / (same.sum() if conditional else off_diagonal.sum())


def lidar(views, delta=1e-4, epsilon=1e-7):
    views = np.asarray(views, dtype=np.float64)
    between = np.cov(views.mean(axis=1).T, bias=True)
    within = np.mean([np.cov(instance.T, bias=True) for instance in views], axis=0)
    whitening = scipy.linalg.fractional_matrix_power(within + delta * np.eye(len(within)), -0.5)
    spectrum = scipy.linalg.eigvalsh(whitening @ between @ whitening)
    return entropy_rank(np.clip(spectrum, 0, None), epsilon)
