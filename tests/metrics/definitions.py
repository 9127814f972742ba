"""The metrics again, in numpy and scipy at float64, from the formulas of the papers."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import sklearn.metrics.pairwise
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from hsplugin.metrics.cluster_learnability import first_centres


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


def stable_rank(x):
    return (np.linalg.norm(x) / np.linalg.norm(x, 2)) ** 2


def feature_std(x):
    return np.std(unit(x), axis=0, ddof=1).mean()


def per_class_rank(x, labels):
    return np.mean([effective_rank(x[labels == label]) for label in np.unique(labels)])


def linear_cka(x, y):
    """By the centred Gram matrices, as the paper defines CKA of any kernel."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, other = (centring @ (f @ f.T) @ centring for f in (x, y))
    return np.sum(k * other) / np.sqrt(np.sum(k * k) * np.sum(other * other))


def unbiased_hsic(k, other):
    """Over all quadruples of distinct samples, by their definition as a U-statistic."""
    terms = [
        k[i, j] * (other[i, j] + other[p, q] - 2 * other[i, p])
        for i, j, p, q in itertools.permutations(range(len(k)), 4)
    ]
    return np.mean(terms)


def knn(x, labels, k, temperature=0.1):
    similar = sklearn.metrics.pairwise.cosine_similarity(np.asarray(x, dtype=np.float64))
    np.fill_diagonal(similar, -np.inf)
    hits = 0
    for row, own in zip(similar, labels, strict=True):
        nearest = np.argsort(-row)[:k]
        votes = np.bincount(labels[nearest], np.exp(row[nearest] / temperature))
        hits += np.argmax(votes) == own
    return hits / len(labels)


def intrinsic_dimension(x):
    distances = np.sort(scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(x)), axis=1)
    return 1 / np.mean(np.log(distances[:, 2] / distances[:, 1]))


def cluster_learnability(x, clusters, k=1, seed=None):
    """From the first centres of the metric, or from those of scikit-learn with a seed."""
    x = np.asarray(x, dtype=np.float64)
    start = "k-means++" if seed is not None else first_centres(torch.tensor(x), clusters, 0).numpy()
    means = KMeans(clusters, init=start, n_init=1, tol=0, random_state=seed).fit_predict(x)
    nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    return np.mean([np.bincount(row).argmax() for row in means[nearest]] == means)


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
