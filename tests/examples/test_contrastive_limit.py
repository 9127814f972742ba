"""The contrastive loss less log M reaches its limit, at the rate that is proven."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from scipy.special import hyp0f1
from torch.nn.functional import cross_entropy

from hsplugin import AlignUniformLoss
from tests.examples import scripts

example = scripts.load("contrastive_limit")

TAU = 0.5
NEGATIVES = [2**k for k in range(5, 13)]


@pytest.fixture(scope="module", params=["sphere", "digits"])
def problem(request: pytest.FixtureRequest):
    return example.PROBLEMS[request.param](TAU)


@pytest.fixture(scope="module")
def points(problem):
    return example.measure(problem, TAU, NEGATIVES, pairs=2**20)


def test_the_closed_form_of_the_limit_is_the_bessel_function() -> None:
    limit = example.on_the_sphere(TAU, dim=6, cosine=0.5).limit
    assert limit == pytest.approx(-0.5 / TAU + math.log(hyp0f1(3, 1 / (4 * TAU**2))))


def test_the_estimate_is_the_cross_entropy_of_the_positive_less_log_m(problem, points) -> None:
    draw = problem.sample(8192, 64, torch.Generator().manual_seed(5))
    logits = torch.cat([draw.positive[:, None], draw.negatives], 1) / TAU
    losses = cross_entropy(logits, torch.zeros(8192, dtype=torch.long), reduction="none")
    direct = losses - math.log(64)
    if problem.limit != example.on_the_sphere(TAU).limit:
        # The anchors drawn are not all of them: put the mean of all in place of theirs.
        direct = direct - (draw.log_mu - draw.positive / TAU) + problem.limit
    by_hand = next(point for point in points if point.negatives == 64)
    standard_error = direct.std().item() / math.sqrt(len(direct))
    assert direct.mean().item() == pytest.approx(by_hand.value, abs=4 * standard_error)


def test_the_loss_less_log_m_ends_at_the_limit(problem, points) -> None:
    assert points[-1].value == pytest.approx(problem.limit, abs=2e-3)


def test_every_error_is_within_the_proven_bound(points) -> None:
    for point in points:
        assert abs(point.error) <= point.absolute * 1.05
        assert point.absolute <= example.proven_bound(point.negatives, TAU)


def test_the_mean_absolute_error_falls_at_the_proven_rate(points) -> None:
    assert example.slope(points, lambda point: point.absolute) == pytest.approx(-0.5, abs=0.05)


def test_the_loss_falls_at_least_at_the_proven_rate(points) -> None:
    assert example.slope(points, lambda point: abs(point.error)) < -0.9


def test_the_limit_is_our_two_terms_on_uniform_features_and_below_them_elsewhere() -> None:
    sphere, digits = example.on_the_sphere(TAU), example.on_digits(TAU)
    assert sphere.limit == pytest.approx(sphere.two_terms, abs=5e-3)
    assert digits.limit < digits.two_terms


def test_the_gradient_of_a_temperature_is_nt_xents_and_that_of_the_defaults_is_not() -> None:
    for tau, cosine in ((0.2, 0.98), (0.5, 0.99)):
        small, large = (
            example.gradient_agreement(AlignUniformLoss.from_temperature(tau), tau, rows)
            for rows in (128, 1024)
        )
        assert cosine < large.cosine <= 1 and abs(large.ratio - 1) < 0.05
        assert large.cosine > small.cosine
        default = example.gradient_agreement(AlignUniformLoss(), tau, 1024)
        assert default.cosine < large.cosine


def test_nt_xent_is_lightlys() -> None:
    a, b = example.clustered_views(40)
    theirs = NTXentLoss(temperature=0.3)(a, b)
    assert example.nt_xent(a, b, 0.3).item() == pytest.approx(theirs.item())


def test_the_script_draws_both_data_sets(tmp_path: Path) -> None:
    picture = tmp_path / "limit.png"
    printed = scripts.run(
        *("contrastive_limit", "--negatives", 16, 64, 256, 1024, "--pairs", 2**17),
        *("--rows", 64, 128, "--out", picture),
    )
    assert printed.count("slopes:") == 2
    assert picture.stat().st_size > 10_000
