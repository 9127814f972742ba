"""Metrics of nearest neighbours, against scikit-learn, Lightly and distances of all pairs."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from hsplugin import metrics
from hsplugin.functional import unit_rows
from hsplugin.metrics import cluster_learnability, functional, knn
from tests.metrics import definitions

GENERATOR = torch.Generator().manual_seed(0)


def classes(rows=120, dim=8, count=4, spread=1.2, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, count, rows)
    return random.normal(size=(count, dim))[labels] + spread * random.normal(
        size=(rows, dim)
    ), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.1), (9, 1.0)])
def test_knn_is_that_of_scikit_learn_leaving_out_each_row(k, temperature, monkeypatch):
    x, labels = classes()
    monkeypatch.setattr(knn, "_BLOCK", 120 * 7)
    classifier = KNeighborsClassifier(
        min(k, 119), metric="cosine", weights=lambda apart: np.exp((1 - apart) / temperature)
    )
    predicted = cross_val_predict(classifier, x, labels, cv=LeaveOneOut())
    found = functional.knn(torch.tensor(x), torch.tensor(labels), k, temperature).item()
    assert found == pytest.approx((predicted == labels).mean())
    assert 0.4 < found < 1


def test_knn_is_that_of_lightly_leaving_out_each_row():
    benchmarking = pytest.importorskip("lightly.utils.benchmarking")
    x, labels = classes(seed=1)
    unit, labels = unit_rows(torch.tensor(x).float()), torch.tensor(labels)
    hits = 0
    for row in range(len(unit)):
        others = torch.arange(len(unit)) != row
        bank = unit[others].T, labels[others]
        hits += benchmarking.knn_predict(unit[row : row + 1], *bank, 4, 30)[0, 0] == labels[row]
    assert functional.knn(unit * 3, labels, 30).item() == pytest.approx(int(hits) / len(unit))


def test_knn_of_ties_and_of_one_class_does_not_depend_on_the_order_of_rows():
    x = torch.eye(3).repeat_interleave(4, dim=0)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1, 1, 1, 1])
    # Of three equal rows, two places are shared: the second class gets 4/3, the first 2/3.
    expected = [0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    for order in (torch.arange(12), torch.arange(11, -1, -1), torch.randperm(12)):
        found = functional.knn(x[order], labels[order], k=2).item()
        assert found == pytest.approx(sum(expected) / 12)
    # One vote each: the smallest class wins.
    one_each = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    assert functional.knn(one_each, torch.tensor([2, 1, 0]), k=2).item() == 0
    assert functional.knn(x, torch.full((12,), 5)).item() == 1
    assert functional.knn(x, torch.arange(12)).item() == 0


def test_knn_leaves_out_rows_without_a_label():
    x, labels = classes()
    some = torch.tensor(labels)
    some[::3] = -1
    kept = some >= 0
    expected = functional.knn(torch.tensor(x)[kept], some[kept], 5)
    assert functional.knn(torch.tensor(x), some, 5) == expected
    metric = metrics.KNNAccuracy()
    metric.update(torch.tensor(x), torch.full((120,), -1))
    with pytest.raises(ValueError, match=r"labels: 0 row\(s\) have one that is not negative"):
        metric.compute()


def test_knn_of_more_rows_than_it_keeps_is_of_a_sample():
    x, labels = classes(3000, spread=0.9)
    metric = metrics.KNNAccuracy(20, max_samples=600)
    for start in range(0, 3000, 250):
        part = slice(start, start + 250)
        metric.update(torch.tensor(x[part]), torch.tensor(labels[part]))
    assert len(metric.features) == 600
    whole = functional.knn(torch.tensor(x), torch.tensor(labels), 20).item()
    assert metric.compute().item() == pytest.approx(whole, abs=0.05)
    assert metrics.KNNAccuracy()._most(65536) < 1500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intrinsic_dimension_is_that_of_the_distances_of_all_pairs(dtype):
    x = torch.tensor(classes(400)[0]).to(dtype)
    expected = definitions.intrinsic_dimension(x.double().numpy())
    assert functional.intrinsic_dimension(x).item() == pytest.approx(expected, rel=1e-5)
    # Far from the origin, products of rows lose the digits of their distances.
    far = x + 100
    expected = definitions.intrinsic_dimension(far.double().numpy())
    assert functional.intrinsic_dimension(far).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_intrinsic_dimension_is_that_of_the_manifold(dim):
    random = np.random.default_rng(0)
    flat = random.uniform(size=(3000, dim)) @ np.linalg.qr(random.normal(size=(40, dim)))[0].T
    found = functional.intrinsic_dimension(torch.tensor(flat)).item()
    assert found == pytest.approx(dim, rel=0.12)
    twice = torch.tensor(np.concatenate([flat, flat[:100]]))
    assert functional.intrinsic_dimension(twice).item() == pytest.approx(found, rel=0.05)
    assert functional.intrinsic_dimension(torch.ones(9, 3)).isnan()


@pytest.mark.parametrize(("k", "normalize"), [(1, True), (1, False), (7, False)])
def test_cluster_learnability_is_that_of_scikit_learn(k, normalize, monkeypatch):
    x = torch.tensor(classes(400, count=9)[0])
    x = unit_rows(x) if normalize else x
    monkeypatch.setattr(cluster_learnability, "_BLOCK", 20 * 7)
    expected = definitions.cluster_learnability(x, 20, k)
    metric = metrics.ClusterLearnability(k=k, normalize=False)
    for part in x.split(150):
        metric.update(part)
    assert metric.compute().item() == pytest.approx(expected)
    assert 0.4 < expected < 0.95
    # The first centres are the one thing that is ours: those of scikit-learn end near by.
    theirs = [definitions.cluster_learnability(x, 20, k, seed=seed) for seed in range(8)]
    ours = [functional.cluster_learnability(x, 20, k, seed).item() for seed in range(8)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.04)


def test_cluster_learnability_depends_on_the_rows_alone():
    state = torch.get_rng_state()
    x = torch.tensor(classes(300)[0]).float()
    found = functional.cluster_learnability(x)
    assert functional.cluster_learnability(x[torch.randperm(300, generator=GENERATOR)]) == found
    assert functional.cluster_learnability(x * 1e30) == found
    assert torch.equal(torch.get_rng_state(), state)


def test_cluster_learnability_of_distant_clusters_and_of_equal_rows_is_one():
    centres = 100 * torch.eye(6, 6).repeat_interleave(9, dim=0)
    x = centres + torch.randn(54, 6, generator=GENERATOR)
    assert functional.cluster_learnability(x, clusters=6) == 1
    assert functional.cluster_learnability(torch.ones(9, 3)) == 1
    with pytest.raises(ValueError, match="clusters must be at least 2"):
        metrics.ClusterLearnability(1)
