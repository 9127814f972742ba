"""Features wider than there are rows: the Gram matrix has the spectra that the covariance has."""

import numpy as np
import pytest
import torch

from hsplugin import metrics
from hsplugin.metrics.moments import gaussian_rank, values_of_rows
from hsplugin.metrics.sampled import WideRows
from tests.metrics import definitions

NAMES = ("wasserstein_uniformity", "rankme", "effective_rank", "alpha_req", "nesum")


def wide(rows, dim, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, dim)) * np.arange(1, dim + 1) ** -0.3 + 0.1


def test_values_from_the_gram_matrix_are_those_from_the_covariance_of_the_same_rows():
    x = wide(150, 400)
    chosen = {name: metrics.METRICS[name]() for name in NAMES}
    found = values_of_rows(chosen, torch.tensor(x))
    for name, metric in chosen.items():
        # A stream of batches sums up the covariance.
        metric.update(torch.tensor(x[:70]))
        metric.update(torch.tensor(x[70:]))
        assert found[name].item() == pytest.approx(metric.compute().item(), rel=1e-7), name
    assert found["rankme"].item() == pytest.approx(definitions.rankme(x), rel=1e-7)
    assert found["alpha_req"].item() == pytest.approx(definitions.alpha_req(x, 10, 100), rel=1e-9)
    expected = definitions.wasserstein_uniformity(definitions.unit(x))
    assert found["wasserstein_uniformity"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rows", "dim"), [(40, 40), (50, 400), (400, 50), (30, 4000)])
def test_gaussian_rows_have_the_rank_that_is_told(rows, dim):
    x = np.random.default_rng(1).normal(size=(rows, dim))
    assert gaussian_rank(rows, dim) == pytest.approx(definitions.rankme(x), rel=0.03)
    rank = definitions.entropy_rank(np.linalg.svd(x, compute_uv=False) ** 2)
    assert gaussian_rank(rows, dim, 2.0) == pytest.approx(rank, rel=0.03)


def test_few_rows_of_wide_features_are_no_collapse_and_are_told():
    metric = metrics.RankMe()
    assert metric.collapse(definitions.rankme(wide(60, 8192)), 60, 8192) == ""
    assert "from 2048 rows" in metric.collapse(15.0, 2048, 8192)
    assert metric.collapse(15.0, 700, 65536) == ""
    assert metric.collapse(1.5, 2, 8192) == ""
    assert "of 60, more is better; 60 Gaussian rows in 80 dimensions have" in metric.describe(
        60, 80
    )
    # The corners of a simplex are as uniform as so few rows can be.
    corners = definitions.unit(np.eye(5) - 0.2) @ np.eye(5, 80)
    best = definitions.wasserstein_uniformity(corners)
    assert f"reach {best:.2f}" in metrics.WassersteinUniformity().describe(5, 80)
    assert metric.describe(5000, 80) == "of 80, more is better"


@pytest.mark.parametrize(("dim", "kept"), [(4, 2048), (8192, 2048), (65536, 724)])
def test_wider_features_leave_fewer_rows(dim, kept):
    assert WideRows()._most(dim) == kept
    assert WideRows(max_samples=100)._most(dim) == 100


def test_the_sample_of_wide_rows_is_of_rows_as_they_are():
    x = torch.tensor(wide(30, 12))
    rows = WideRows(max_samples=20)
    for part in x.split(7):
        rows.update(part)
    kept = rows.compute()
    assert len(kept) == 20
    assert all((row == x).all(dim=1).any() for row in kept)
