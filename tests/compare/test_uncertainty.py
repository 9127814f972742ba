"""Errors of accuracies and their differences, held to simulated studies whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hsplugin.compare.uncertainty import LEVEL, among_the_best, difference
from hsplugin.lab.evaluate import percent, standard_error

IMAGES, SEEDS = 400, 3


def study(random: np.random.Generator, gains: list[float], images: int = IMAGES) -> list:
    """Answers of methods with shared images: hard images, lucky seeds, and chance."""
    difficulty = random.normal(1.5, 1.5, images)
    answers = []
    for gain in gains:
        of_method = difficulty + 0.7 * random.normal(size=images)
        luck = 0.15 * random.normal(size=(SEEDS, 1))
        chance = stats.norm.cdf(of_method + gain + luck)
        answers.append(torch.from_numpy(random.random((SEEDS, images)) < chance).double())
    return answers


def test_the_error_of_one_run_is_binomial():
    right = torch.tensor([1.0] * 30 + [0.0] * 10, dtype=torch.float64)
    assert percent(right) == pytest.approx(75)
    assert standard_error(right) == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 40))


def test_the_difference_is_that_of_the_definition():
    a, b = study(np.random.default_rng(0), [0.0, 0.3])
    found = difference(a, b)
    x, y = 100 * a.numpy(), 100 * b.numpy()
    parts = [
        (x.mean(0) - y.mean(0)).var(ddof=1) / IMAGES,
        x.mean(1).var(ddof=1) / SEEDS,
        y.mean(1).var(ddof=1) / SEEDS,
    ]
    freedoms = [IMAGES - 1, SEEDS - 1, SEEDS - 1]
    welch = sum(parts) ** 2 / sum(p**2 / f for p, f in zip(parts, freedoms, strict=True))
    assert found.value == pytest.approx(x.mean() - y.mean())
    assert found.error == pytest.approx(math.sqrt(sum(parts)))
    assert found.freedom == pytest.approx(welch)
    two_sided = 2 * stats.t.sf(abs(found.value) / found.error, welch)
    assert found.p_value() == pytest.approx(two_sided)


def test_one_seed_leaves_the_paired_test_over_images():
    a, b = (answers[:1] for answers in study(np.random.default_rng(1), [0.0, 0.2]))
    assert difference(a, b).p_value() == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue)


def test_equal_answers_are_not_told_apart():
    (a,) = study(np.random.default_rng(2), [0.0])
    same = torch.ones(2, 50, dtype=torch.float64)
    assert among_the_best([same, same.clone()]) == [True, True]
    assert difference(same, same).p_value() == 1.0
    assert among_the_best([a]) == [True]


def test_the_error_covers_what_other_images_and_seeds_change():
    random = np.random.default_rng(3)
    found = [difference(*study(random, [0.0, 0.0])) for _ in range(600)]
    spread = np.std([one.value for one in found])
    said = math.sqrt(np.mean([one.error**2 for one in found]))
    # Chance is counted twice, so a little more is said; the spread itself is known to 3 %.
    assert 0.93 * spread < said < 1.3 * spread
    rejected = np.mean([one.p_value() < LEVEL for one in found])
    assert rejected < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 600)


def test_the_truly_best_is_among_the_marked_and_the_clearly_worse_is_not():
    random = np.random.default_rng(4)
    best = worse = 0
    for _ in range(300):
        marks = among_the_best(study(random, [0.0, 0.0, 0.0, 0.0, -1.0]))
        best += marks[0]
        worse += marks[-1]
    # With equal methods each is as good as the best: one of them must not be lost more often.
    assert best / 300 > 1 - LEVEL - 3 * math.sqrt(LEVEL * (1 - LEVEL) / 300)
    assert worse / 300 < 0.2
