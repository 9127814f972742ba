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
    x = generator.normal(size=40)
    y = np.round(x + generator.normal(size=40), 1)
    x[:6] = x[6:12]  # ties in both
    return x, y


@pytest.fixture
def counts():
    """How often each of five samples holds each encoder; the first holds each once."""
    drawn = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=4)
    return np.concatenate([np.ones((1, 40)), drawn])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(agreement.spearman, stats.spearmanr), (agreement.kendall, stats.kendalltau)],
)
def test_coefficients_are_scipys_of_each_sample_with_ties(columns, counts, ours, theirs):
    samples = [[np.repeat(c, n.astype(int)) for c in columns] for n in counts]
    expected = [theirs(a, b).statistic for a, b in samples]
    np.testing.assert_allclose(ours(*columns, counts), expected, rtol=1e-12)


def test_dominance_counts_the_pairs_that_agree(columns, counts):
    first, accuracy = columns
    second = np.random.default_rng(3).normal(size=first.shape)
    for of, found in zip(counts, agreement.dominance(first, second, accuracy, counts), strict=True):
        a, b, c = (np.repeat(x, of.astype(int)) for x in (first, second, accuracy))
        won = ordered = 0.0
        for i in range(40):
            for j in range(40):
                if a[i] < a[j] and b[i] < b[j]:
                    ordered += 1
                    won += 1.0 if c[i] > c[j] else 0.5 if c[i] == c[j] else 0.0
        assert found == pytest.approx(won / ordered)


def test_what_is_lost_is_the_difference_of_the_two_choices():
    accuracy = np.array([70.0, 90.0, 80.0])
    on_validation = np.array([71.0, 88.0, 89.0])  # labels choose the third, where it is there
    counts = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]])
    lost = agreement.lost
    assert lost(np.array([3.0, 1.0, 2.0]), on_validation, accuracy, counts).tolist() == [10, 20]
    assert lost(np.array([1.0, 3.0, 2.0]), on_validation, accuracy, counts).tolist() == [-10, 0]
    assert lost(on_validation, on_validation, accuracy, counts).tolist() == [0, 0]
    at_random = agreement.lost_at_random(on_validation, accuracy, counts)
    assert at_random == pytest.approx([80 - 80, 90 - (70 + 2 * 90) / 3])


def test_the_interval_is_close_to_scipys_bootstrap(columns):
    x, y = columns
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
    x, y = columns[0].copy(), columns[1]
    x[3] = math.nan
    ours = agreement.estimate(agreement.kendall, x, y)
    assert ours.encoders == 39
    kept = np.isfinite(x)
    assert ours.value == pytest.approx(stats.kendalltau(x[kept], y[kept]).statistic)


def test_a_constant_metric_agrees_with_nothing():
    assert math.isnan(agreement.estimate(agreement.spearman, [1.0] * 5, [1, 2, 3, 4, 5]).value)


def test_two_encoders_are_too_few():
    assert math.isnan(agreement.estimate(agreement.spearman, [1, 2], [1, 2]).value)
