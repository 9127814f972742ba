"""Rank statistics and their bootstrap intervals against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hsplugin.sweep import agreement


@pytest.fixture
def columns():
    generator = np.random.default_rng(7)
    x = generator.normal(size=(5, 40))
    y = np.round(x + generator.normal(size=(5, 40)), 1)
    x[:, :6] = x[:, 6:12]  # ties in both
    return x, y


def test_spearman_is_scipys_row_by_row_with_ties(columns):
    x, y = columns
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(agreement.spearman(x, y), expected, rtol=1e-12)


def test_kendall_is_scipys_tau_b_row_by_row_with_ties(columns):
    x, y = columns
    expected = [stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(agreement.kendall(x, y), expected, rtol=1e-12)


def test_dominance_counts_the_pairs_that_agree(columns):
    first, accuracy = columns
    second = np.random.default_rng(3).normal(size=first.shape)
    won = ordered = 0.0
    for i in range(40):
        for j in range(40):
            if first[0, i] < first[0, j] and second[0, i] < second[0, j]:
                ordered += 1
                won += 1.0 if accuracy[0, i] > accuracy[0, j] else 0.0
                won += 0.5 if accuracy[0, i] == accuracy[0, j] else 0.0
    assert agreement.dominance(first, second, accuracy)[0] == pytest.approx(won / ordered)


def test_what_is_lost_is_the_difference_of_the_two_choices():
    accuracy = np.array([[70.0, 90.0, 80.0]])
    on_validation = np.array([[71.0, 88.0, 89.0]])  # labels choose the third
    assert agreement.lost(np.array([[3.0, 1.0, 2.0]]), on_validation, accuracy) == 10.0
    assert agreement.lost(np.array([[1.0, 3.0, 2.0]]), on_validation, accuracy) == -10.0
    assert agreement.lost(on_validation, on_validation, accuracy) == 0.0
    assert agreement.lost_at_random(on_validation, accuracy) == 0.0


def test_the_interval_is_close_to_scipys_bootstrap(columns):
    x, y = columns[0][0], columns[1][0]
    ours = agreement.estimate(agreement.spearman, x, y)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        random_state=1,
    ).confidence_interval
    assert ours.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert ours.low == pytest.approx(theirs.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.high, abs=0.05)


def test_an_encoder_without_the_metric_is_left_out(columns):
    x, y = columns[0][0].copy(), columns[1][0]
    x[3] = math.nan
    ours = agreement.estimate(agreement.kendall, x, y)
    assert ours.encoders == 39
    kept = np.isfinite(x)
    assert ours.value == pytest.approx(stats.kendalltau(x[kept], y[kept]).statistic)


def test_a_constant_metric_agrees_with_nothing():
    assert math.isnan(agreement.estimate(agreement.spearman, [1.0] * 5, [1, 2, 3, 4, 5]).value)


def test_two_encoders_are_too_few():
    assert math.isnan(agreement.estimate(agreement.spearman, [1, 2], [1, 2]).value)
