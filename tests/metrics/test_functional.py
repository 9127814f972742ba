import numpy as np
import pytest
import scipy.linalg
import torch

from hsplugin import metrics
from hsplugin.functional import unit_rows
from hsplugin.metrics import functional
from tests.metrics import definitions


def random(generator, n=60, d=12):
    return torch.randn(n, d, generator=generator) + 0.5


def rank_deficient(generator, n=60, d=12):
    return random(generator, n, 4) @ torch.randn(4, d, generator=generator)


def duplicated(generator, n=60, d=12):
    return random(generator, n // 4, d).repeat(4, 1)


def large(generator, n=3000, d=96):
    return random(generator, n, d) * torch.linspace(0.01, 50, d)


def far_from_origin(generator, n=60, d=12):
    return random(generator, n, d) + 1000


def few(generator, n=7, d=12):
    return random(generator, n, d)


INPUTS = [random, rank_deficient, duplicated, large, far_from_origin, few]
ON_SPHERE = [
    (functional.uniformity, definitions.uniformity),
    (functional.wasserstein_uniformity, definitions.wasserstein_uniformity),
]
AS_GIVEN = [
    (functional.rankme, definitions.rankme),
    (functional.effective_rank, definitions.effective_rank),
    (functional.nesum, definitions.nesum),
    (functional.stable_rank, lambda x: definitions.stable_rank(np.asarray(x, dtype=np.float64))),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize(("function", "definition"), ON_SPHERE)
def test_metrics_on_the_sphere_equal_their_definition(function, definition, make, dtype, generator):
    x = unit_rows(make(generator).to(dtype))
    # The square root of a vanishing eigenvalue has half the digits.
    accuracy = 2e-5 if dtype == torch.float32 else 1e-6
    assert function(x).item() == pytest.approx(definition(x), rel=accuracy, abs=1e-6)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize(("function", "definition"), AS_GIVEN)
def test_spectral_metrics_equal_their_definition(function, definition, make, generator):
    x = make(generator)
    assert function(x).item() == pytest.approx(definition(x), rel=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_alignment_equals_its_definition(alpha, generator):
    x, y = unit_rows(random(generator)), unit_rows(random(generator))
    expected = definitions.alignment(x, y, alpha)
    assert functional.alignment(x, y, alpha).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fit_range", [(1, 12), (3, 8), (10, 100)])
def test_alpha_req_equals_a_regression(fit_range, generator):
    x = random(generator, 300, 40) * torch.arange(1, 41).pow(-0.8)
    expected = definitions.alpha_req(x, *fit_range)
    assert functional.alpha_req(x, fit_range).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("make", [random, large, few, far_from_origin])
def test_condition_number_is_that_of_numpy(make, generator):
    x = make(generator)
    expected = np.linalg.cond(np.asarray(x, dtype=np.float64))
    assert functional.condition_number(x).item() == pytest.approx(expected, rel=1e-6)


def test_a_deficient_rank_has_an_infinite_condition_number(generator):
    assert functional.condition_number(rank_deficient(generator).double()).item() == np.inf
    dead = random(generator)
    dead[:, 3] = 0
    metric = metrics.ConditionNumber()
    metric.update(dead)
    assert metric.compute().item() == np.inf
    assert functional.condition_number(torch.zeros(5, 3)).isnan()


@pytest.mark.parametrize("make", INPUTS)
def test_feature_std_is_that_of_lightly(make, generator):
    x = make(generator)
    found = functional.feature_std(x).item()
    assert found == pytest.approx(definitions.feature_std(x), rel=1e-5)
    debug = pytest.importorskip("lightly.utils.debug")
    assert found == pytest.approx(debug.std_of_l2_normalized(x.double()).item(), rel=1e-5)
    assert functional.feature_std(x[:1].repeat(9, 1) * torch.arange(1, 10)[:, None]).item() < 1e-7


def test_per_class_rank_is_the_mean_rank_of_classes_of_more_than_one_row(generator):
    x, labels = random(generator).double().numpy(), np.arange(60) % 4
    found = functional.per_class_rank(torch.tensor(x), torch.tensor(labels)).item()
    assert found == pytest.approx(definitions.per_class_rank(x, labels), rel=1e-9)
    alone = np.concatenate([[7, -1, -1], labels[3:]])
    found = functional.per_class_rank(torch.tensor(x), torch.tensor(alone)).item()
    assert found == pytest.approx(definitions.per_class_rank(x[3:], labels[3:]), rel=1e-9)
    points = torch.eye(4)[torch.tensor(labels)]
    assert functional.per_class_rank(points, torch.tensor(labels)).item() == 0
    with pytest.raises(ValueError, match="no two rows share a class"):
        functional.per_class_rank(torch.eye(3), torch.arange(3))


def test_linear_cka_compares_encoders_of_other_dimensions(generator):
    x = random(generator).double()
    y = x @ torch.randn(12, 5, generator=generator).double() + random(generator, d=5)
    found = functional.linear_cka(x, y).item()
    assert found == pytest.approx(definitions.linear_cka(x.numpy(), y.numpy()), rel=1e-9)
    assert 0.1 < found < 0.9
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator).double()).Q
    assert functional.linear_cka(x, 1e200 * x @ rotation + 3).item() == pytest.approx(1)
    assert functional.linear_cka(x, torch.ones(60, 3)).isnan()
    with pytest.raises(ValueError, match="x and y must be features of the same samples"):
        functional.linear_cka(x, y[1:])
    metric = metrics.LinearCKA()
    metric.update(x, y)
    with pytest.raises(ValueError, match=r"dimensions \(5, 12\), but \(12, 5\)"):
        metric.update(y, x)


def test_unbiased_linear_cka_is_zero_on_average_where_there_are_fewer_rows_than_dimensions(
    generator,
):
    x, y = (torch.randn(9, d, generator=generator).double() for d in (30, 40))
    k, other = (np.asarray(f @ f.T) for f in (x, y))
    hsic = definitions.unbiased_hsic
    expected = hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))
    assert functional.linear_cka(x, y, unbiased=True).item() == pytest.approx(expected, rel=1e-9)
    pairs = [
        (torch.randn(20, 300, generator=generator), torch.randn(20, 200, generator=generator))
        for _ in range(50)
    ]
    found = torch.stack([functional.linear_cka(a, b, unbiased=True) for a, b in pairs])
    assert abs(found.mean()) < 4 * found.std() / 50**0.5
    assert min(functional.linear_cka(a, b) for a, b in pairs) > 0.8


@pytest.mark.parametrize("conditional", [False, True])
def test_tolerance_equals_its_definition(conditional, generator):
    x = unit_rows(random(generator).double())
    labels = torch.randint(-3, 4, (len(x),), generator=generator)
    expected = definitions.tolerance(x, labels.numpy(), conditional)
    assert functional.tolerance(x, labels, conditional).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("q", [2, 5])
@pytest.mark.parametrize("d", [6, 30])
def test_lidar_equals_its_definition(q, d, generator):
    instances = torch.randn(20, 1, d, generator=generator) * torch.linspace(0.1, 3, d)
    views = instances + 0.3 * torch.randn(20, q, d, generator=generator)
    assert functional.lidar(views).item() == pytest.approx(definitions.lidar(views), rel=1e-6)


@pytest.mark.parametrize("q", [2, 5])
def test_unbiased_covariances_in_lidar_are_another_delta(q, generator):
    views = torch.randn(20, 1, 6, generator=generator) + torch.randn(20, q, 6, generator=generator)
    delta, x = 0.5, np.asarray(views, dtype=np.float64)
    between = np.cov(x.mean(axis=1).T)
    within = np.mean([np.cov(instance.T) for instance in x], axis=0) + delta * np.eye(6)
    expected = definitions.entropy_rank(scipy.linalg.eigh(between, within, eigvals_only=True), 1e-7)
    found = functional.lidar(views, delta * (q - 1) / q).item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert functional.lidar(views, delta).item() != pytest.approx(expected, rel=1e-3)


def test_a_collapsed_representation_shows_in_every_metric():
    x = unit_rows(torch.full((50, 16), 0.3))
    assert functional.alignment(x, x).item() == 0
    assert functional.uniformity(x).item() == pytest.approx(0, abs=1e-5)
    assert functional.wasserstein_uniformity(x).item() == pytest.approx(2**0.5, rel=1e-6)
    assert functional.rankme(x).item() == pytest.approx(1, rel=1e-3)
    assert functional.effective_rank(x).item() == 0
    assert functional.nesum(x).item() == 0
    assert functional.alpha_req(x).isnan()
    assert functional.tolerance(x, torch.zeros(50).long()).item() == pytest.approx(1)
    assert functional.lidar(x[:, None].repeat(1, 3, 1)).item() == 0


def test_wasserstein_uniformity_sees_dead_dimensions_that_uniformity_hardly_sees(generator):
    spread = unit_rows(torch.randn(2000, 64, generator=generator))
    half = spread.clone()
    half[:, 32:] = 0
    half = unit_rows(half)
    change = functional.uniformity(half) / functional.uniformity(spread)
    assert change > 0.95
    ratio = functional.wasserstein_uniformity(half) / functional.wasserstein_uniformity(spread)
    assert ratio > 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused_by_name(bad, generator):
    x = random(generator)
    x[3, 2] = bad
    for function in (
        functional.uniformity,
        functional.wasserstein_uniformity,
        functional.rankme,
        functional.effective_rank,
        functional.alpha_req,
        functional.nesum,
    ):
        with pytest.raises(ValueError, match=r"features.*1 of 60|fit_range"):
            function(x)
    with pytest.raises(ValueError, match=r"^y: 1 of 60"):
        functional.alignment(random(generator), x)
    with pytest.raises(ValueError, match=r"^views: 1 of 30"):
        functional.lidar(x.view(30, 2, 12))
    with pytest.raises(ValueError, match=r"^features: 1 of 60"):
        functional.tolerance(x, torch.zeros(60).long())


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 4), torch.zeros(4), torch.zeros(2, 3, 4), torch.zeros(3, 0)]
)
def test_wrong_shapes_are_refused_by_name(x):
    for function in (functional.rankme, functional.nesum, functional.uniformity):
        with pytest.raises(ValueError, match="features"):
            function(x)


def test_labels_and_views_are_refused_by_name():
    x = torch.eye(3)
    with pytest.raises(ValueError, match="labels is missing"):
        functional.tolerance(x, None)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        functional.tolerance(x, torch.zeros(2).long())
    with pytest.raises(TypeError, match="labels must be integers"):
        functional.tolerance(x, torch.zeros(3))
    with pytest.raises(ValueError, match="no two samples share a class"):
        functional.tolerance(x, torch.arange(3), conditional=True)
    with pytest.raises(ValueError, match="views must have shape"):
        functional.lidar(x)
    with pytest.raises(ValueError, match="views must have shape"):
        functional.lidar(x[:, None])
    with pytest.raises(ValueError, match="fit_range"):
        functional.alpha_req(torch.randn(5, 8))


def test_half_precision_is_computed_with_in_full(generator):
    x = random(generator).half()
    assert functional.rankme(x).item() == pytest.approx(definitions.rankme(np.asarray(x.float())))
    assert functional.uniformity(unit_rows(x)).dtype == torch.float32
