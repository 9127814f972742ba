import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection
from torchmetrics.wrappers import Running

from hsplugin import metrics, uniformity_optimum
from hsplugin.functional import unit_rows
from hsplugin.metrics import functional
from hsplugin.metrics.inputs import select_inputs
from hsplugin.metrics.jackknife import GroupedMetrics
from hsplugin.metrics.sampled import SampledMetric

LABELS = torch.arange(40) % 5
FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) + 0.4
OTHER = FEATURES + 0.3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(4))
VIEWS = torch.stack([FEATURES, OTHER], dim=1)

# Each metric, the arguments of its update, and the same of the function in its name.
CASES = {
    "alignment": (
        lambda: metrics.Alignment(alpha=1.5),
        (FEATURES, OTHER),
        lambda: functional.alignment(unit_rows(FEATURES), unit_rows(OTHER), 1.5),
    ),
    "uniformity": (
        metrics.Uniformity,
        (FEATURES, LABELS),
        lambda: functional.uniformity(unit_rows(FEATURES)),
    ),
    "wasserstein_uniformity": (
        metrics.WassersteinUniformity,
        (FEATURES,),
        lambda: functional.wasserstein_uniformity(unit_rows(FEATURES)),
    ),
    "rankme": (metrics.RankMe, (FEATURES,), lambda: functional.rankme(FEATURES)),
    "effective_rank": (
        metrics.EffectiveRank,
        (FEATURES,),
        lambda: functional.effective_rank(FEATURES),
    ),
    "alpha_req": (
        lambda: metrics.AlphaReQ(fit_range=(2, 5)),
        (FEATURES,),
        lambda: functional.alpha_req(FEATURES, (2, 5)),
    ),
    "nesum": (metrics.NESum, (FEATURES,), lambda: functional.nesum(FEATURES)),
    "tolerance": (
        lambda: metrics.Tolerance(num_classes=5),
        (FEATURES, LABELS),
        lambda: functional.tolerance(unit_rows(FEATURES), LABELS),
    ),
    "lidar": (metrics.LiDAR, (VIEWS,), lambda: functional.lidar(VIEWS)),
    "stable_rank": (metrics.StableRank, (FEATURES,), lambda: functional.stable_rank(FEATURES)),
    "condition_number": (
        metrics.ConditionNumber,
        (FEATURES,),
        lambda: functional.condition_number(FEATURES),
    ),
    "feature_std": (metrics.FeatureStd, (FEATURES,), lambda: functional.feature_std(FEATURES)),
    "intrinsic_dimension": (
        metrics.IntrinsicDimension,
        (FEATURES,),
        lambda: functional.intrinsic_dimension(unit_rows(FEATURES)),
    ),
    "cluster_learnability": (
        lambda: metrics.ClusterLearnability(clusters=4),
        (FEATURES,),
        lambda: functional.cluster_learnability(unit_rows(FEATURES), 4),
    ),
    "per_class_rank": (
        metrics.PerClassRank,
        (FEATURES, LABELS),
        lambda: functional.per_class_rank(FEATURES, LABELS),
    ),
    "knn": (
        lambda: metrics.KNNAccuracy(k=7),
        (FEATURES, LABELS),
        lambda: functional.knn(FEATURES, LABELS, k=7),
    ),
    "linear_cka": (
        metrics.LinearCKA,
        (FEATURES, OTHER[:, :4].contiguous()),
        lambda: functional.linear_cka(FEATURES, OTHER[:, :4]),
    ),
}
# Those whose states can be weighted, which the jackknife's error is from.
WEIGHTED = [n for n, (make, *_) in CASES.items() if not isinstance(make(), SampledMetric)]
WEIGHTED.remove("linear_cka")


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, 39), max_size=6))
def test_any_split_into_batches_gives_the_value_of_the_whole(name, cuts):
    make, arguments, function = CASES[name]
    metric = make()
    ends = [*sorted(cuts), 40]
    for start, end in zip([0, *ends], ends, strict=False):
        metric.update(*(argument[start:end] for argument in arguments))
    assert metric.compute().item() == pytest.approx(function().item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_forward_gives_the_batch_and_keeps_the_whole(name):
    make, arguments, function = CASES[name]
    metric, of_batch = make(), make()
    metric(*(argument[:20] for argument in arguments))
    second = [argument[20:] for argument in arguments]
    of_batch.update(*second)
    assert metric(*second).item() == pytest.approx(of_batch.compute().item(), rel=1e-6)
    assert metric.compute().item() == pytest.approx(function().item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_metric_goes_on_where_it_was(name):
    make, arguments, function = CASES[name]
    first, second = make(), make()
    first.persistent(True)
    second.persistent(True)
    first.update(*(argument[:23] for argument in arguments))
    second.load_state_dict(first.state_dict())
    second.update(*(argument[23:] for argument in arguments))
    assert second.compute().item() == pytest.approx(function().item(), rel=1e-6)
    assert pickle.loads(pickle.dumps(second)).compute() == second.compute()
    assert copy.deepcopy(second).compute() == second.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_floating_dtype_is_taken(name, dtype):
    make, arguments, function = CASES[name]
    metric = make()
    metric.update(*(a.to(dtype) if a.is_floating_point() else a for a in arguments))
    assert metric.compute().item() == pytest.approx(function().item(), rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_nan_is_refused_in_compute_and_forgotten_by_reset(name):
    make, arguments, function = CASES[name]
    metric = make()
    spoilt = [a.clone() for a in arguments]
    spoilt[0].view(-1)[7] = float("nan")
    metric.update(*spoilt)
    with pytest.raises(ValueError, match=r"1 of 40 rows .*NaN"):
        metric.compute()
    metric.reset()
    metric.update(*arguments)
    assert metric.compute().item() == pytest.approx(function().item(), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n != "alignment"])
def test_one_sample_is_refused(name):
    make, arguments, _ = CASES[name]
    metric = make()
    metric.update(*(argument[:1] for argument in arguments))
    with pytest.raises(ValueError, match=r"(features|views|x or y).* 1 row\(s\)"):
        metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", CASES)
def test_compute_before_update_is_refused(name):
    with pytest.raises(ValueError, match=r"seen 0 row\(s\)"):
        CASES[name][0]().compute()


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("alignment", "linear_cka")])
def test_features_of_another_dimension_are_refused(name):
    make, arguments, _ = CASES[name]
    metric = make()
    metric.update(*arguments)
    with pytest.raises(ValueError, match=r"dimension 4, but 6"):
        metric.update(arguments[0][..., :4], *arguments[1:])


@pytest.mark.parametrize("name", CASES)
def test_metrics_leave_the_random_state_and_the_graph_alone(name):
    make, arguments, _ = CASES[name]
    state = torch.get_rng_state()
    metric = make()
    if name == "uniformity":
        metric.max_samples = 20
    tracked = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    value = metric(*tracked)
    assert torch.equal(state, torch.get_rng_state())
    assert not value.requires_grad
    assert not metric.compute().requires_grad


@pytest.mark.parametrize("name", CASES)
def test_update_reads_no_value(name):
    # On the meta device there are no values: whatever reads one fails.
    make, arguments, _ = CASES[name]
    metric = make().to("meta")
    for _ in range(2):
        metric.update(*(argument.to("meta") for argument in arguments))


@pytest.mark.parametrize("name", CASES)
def test_plot_draws_one_value_and_several(name):
    make, arguments, _ = CASES[name]
    metric = make()
    metric.update(*arguments)
    figure, axes = metric.plot()
    assert axes.lines[0].get_ydata()[0] == pytest.approx(metric.compute().item())
    metric.plot([metric.compute(), metric.compute()], ax=axes)
    assert len(axes.lines[1].get_ydata()) == 2
    assert axes.get_figure() is figure


@pytest.mark.parametrize("name", CASES)
def test_flags_of_torchmetrics_are_set(name):
    metric = CASES[name][0]()
    lower = {"alignment", "uniformity", "wasserstein_uniformity", "condition_number"}
    expected = None if name in ("alpha_req", "linear_cka") else name not in lower
    assert metric.higher_is_better is expected
    assert metric.is_differentiable is False


def test_moment_metrics_share_their_update_in_a_collection():
    collection = MetricCollection(
        [metrics.RankMe(), metrics.EffectiveRank(), metrics.NESum(), metrics.AlphaReQ((2, 5))]
    )
    for part in FEATURES.split(9):
        collection.update(part)
    assert len(collection.compute_groups) == 1
    values = collection.compute()
    assert values["RankMe"].item() == pytest.approx(functional.rankme(FEATURES).item())
    assert values["NESum"].item() == pytest.approx(functional.nesum(FEATURES).item())


def test_metrics_of_other_options_are_not_merged_because_their_first_batches_agree():
    makers = {
        "alpha 1": lambda: metrics.Alignment(1),
        "alpha 2": lambda: metrics.Alignment(2),
    }
    both, alone = MetricCollection({k: make() for k, make in makers.items()}), metrics.Alignment(2)
    for metric in (both, alone):
        metric.update(FEATURES, FEATURES)
        metric.update(FEATURES, OTHER)
    assert both.compute()["alpha 2"] == alone.compute()

    both = MetricCollection([metrics.RankMe(), metrics.WassersteinUniformity()])
    alone = metrics.WassersteinUniformity()
    for metric in (both, alone):
        metric.update(unit_rows(FEATURES))
        metric.update(FEATURES)
    assert both.compute()["WassersteinUniformity"] == alone.compute()

    few, many = metrics.Uniformity(max_samples=8), metrics.Uniformity(max_samples=100)
    both = MetricCollection({"few": few, "many": many})
    both.update(FEATURES[:8])
    both.update(FEATURES[8:])
    both.compute()
    assert (both["few"].report().kept, both["many"].report().kept) == (8, 40)


@pytest.mark.parametrize("name", CASES)
def test_a_module_converted_to_half_precision_leaves_its_metric_exact(name):
    make, arguments, function = CASES[name]
    holder = torch.nn.ModuleDict({"metric": make()})
    holder["metric"].update(*(a[:17] for a in arguments))
    holder.to(torch.bfloat16)
    holder["metric"].set_dtype(torch.float16)
    holder["metric"].update(*(a[17:] for a in arguments))
    assert holder["metric"].compute().item() == pytest.approx(function().item(), rel=1e-5)


def test_streamed_moments_survive_a_mean_far_larger_than_the_spread():
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).double() + 1e7
    metric = metrics.NESum()
    for part in x.split(37):
        metric.update(part)
    assert metric.compute().item() == pytest.approx(functional.nesum(x).item(), rel=1e-7)
    raw = x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))
    cancelled = torch.linalg.eigvalsh(raw)
    assert (cancelled.sum() / cancelled[-1]).item() != pytest.approx(
        metric.compute().item(), rel=1e-3
    )


@pytest.mark.parametrize("rank", [1, 5, 63])
def test_streamed_rankme_agrees_with_the_decomposition_at_deficient_rank(rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(500, rank, generator=generator).double()
    x = x @ torch.randn(rank, 64, generator=generator).double()
    metric = metrics.RankMe()
    metric.update(x)
    assert metric.compute().item() == pytest.approx(functional.rankme(x).item(), rel=2e-5)


def test_tolerance_refuses_labels_out_of_range():
    metric = metrics.Tolerance(num_classes=3)
    metric.update(FEATURES, LABELS)
    with pytest.raises(ValueError, match=r"labels: 16 lie outside \[0, 3\)"):
        metric.compute()
    with pytest.raises(ValueError, match="labels is missing"):
        metric.update(FEATURES, None)


def test_uniformity_reports_optimum_gap_and_classes():
    metric = metrics.Uniformity(t=3.0)
    metric.update(FEATURES[:10])
    metric.update(FEATURES[10:], LABELS[10:])
    report = metric.report()
    assert report.uniformity == metric.compute().item()
    assert report.optimum == uniformity_optimum(6, 3.0)
    assert report.gap == report.uniformity - report.optimum
    assert (report.rows, report.kept, report.standard_error) == (40, 40, 0.0)
    assert set(report.per_class) == {0, 1, 2, 3, 4}
    of_class = unit_rows(FEATURES[10:][LABELS[10:] == 2])
    assert report.per_class[2] == pytest.approx(functional.uniformity(of_class, 3.0).item())


def test_uniformity_without_normalisation_takes_features_as_they_are():
    metric = metrics.Uniformity(normalize=False)
    metric.update(FEATURES)
    assert metric.compute() == functional.uniformity(FEATURES)


def test_the_sample_is_fair_and_the_same_however_the_rows_come():
    x = torch.arange(400.0)[:, None] + 1
    counts = torch.zeros(400)
    for seed in range(300):
        whole = metrics.Uniformity(max_samples=40, normalize=False, seed=seed)
        whole.update(x)
        parts = metrics.Uniformity(max_samples=40, normalize=False, seed=seed)
        for part in x.split(31):
            parts.update(part)
        kept = whole.features[:, 0].sort().values
        assert torch.equal(kept, parts.features[:, 0].sort().values)
        counts[kept.long() - 1] += 1
    # Each row is kept with probability 1/10: 30 times in 300, with a deviation of about 5.2.
    chi_squared = ((counts - 30) ** 2 / 27).sum()
    assert 320 < chi_squared < 490
    assert abs(counts[:200].sum() - 6000) < 250


def test_the_standard_error_of_the_sample_tells_its_spread():
    generator = torch.Generator().manual_seed(0)
    x = unit_rows(torch.randn(1500, 3, generator=generator) + torch.tensor([1.0, 0, 0]))
    truth = functional.uniformity(x).item()
    reports = []
    for seed in range(150):
        metric = metrics.Uniformity(max_samples=150, seed=seed)
        metric.update(x)
        reports.append(metric.report())
    values = torch.tensor([report.uniformity for report in reports])
    errors = torch.tensor([report.standard_error for report in reports])
    assert reports[0].kept == 150
    assert abs(values.mean() - truth) < 4 * values.std() / 150**0.5
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: metrics.Uniformity(max_samples=1),
        lambda: metrics.Uniformity(t=0),
        lambda: metrics.Uniformity(backend="fast"),
        lambda: metrics.Alignment(alpha=-1),
        lambda: metrics.AlphaReQ((5, 5)),
        lambda: metrics.RankMe(epsilon=0),
        lambda: metrics.LiDAR(delta=0),
        lambda: metrics.Tolerance(num_classes=0),
    ],
)
def test_options_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match=r"max_samples|t must|back|alpha|fit_|epsilon|delta|num_"):
        make()


@pytest.mark.parametrize("name", [n for n in CASES if n != "alignment"])
def test_forward_on_a_last_batch_of_one_row_is_nan_and_loses_nothing(name):
    make, arguments, function = CASES[name]
    metric = make()
    metric(*(argument[:39] for argument in arguments))
    assert metric(*(argument[39:] for argument in arguments)).isnan()
    assert metric.compute().item() == pytest.approx(function().item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_forward_refuses_leaves_the_metric_as_it_was(name):
    make, arguments, function = CASES[name]
    metric = make()
    metric(*arguments)
    spoilt = [a.clone() for a in arguments]
    spoilt[0].view(-1)[7] = float("inf")
    with pytest.raises(ValueError, match=r"1 of 40 rows"):
        metric(*spoilt)
    assert int(metric.rows) == 40
    assert metric.compute().item() == pytest.approx(function().item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_parts_merge_to_that_of_the_whole(name):
    make, arguments, function = CASES[name]
    first, second, nothing = make(), make(), make()
    first.update(*(argument[:13] for argument in arguments))
    second.update(*(argument[13:] for argument in arguments))
    first.merge_state(nothing)
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(function().item(), rel=1e-6)


def test_metrics_of_other_dimensions_do_not_merge():
    for name in [n for n in CASES if n != "alignment"]:
        make, arguments, _ = CASES[name]
        first, second = make(), make()
        first.update(*arguments)
        second.update(arguments[0][..., :4], *arguments[1:])
        with pytest.raises(ValueError, match="dimension"):
            first.merge_state(second)


@pytest.mark.parametrize("name", CASES)
def test_a_running_window_is_the_metric_of_its_batches(name):
    make, arguments, _ = CASES[name]
    running, whole = Running(make(), window=2), make()
    for start in (0, 10, 20, 30):
        running.update(*(argument[start : start + 10] for argument in arguments))
    whole.update(*(argument[20:] for argument in arguments))
    assert running.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_metric_refuses_an_empty_batch(name):
    make, arguments, _ = CASES[name]
    with pytest.raises(ValueError, match=r"has 0 row\(s\)"):
        make().update(*(argument[:0] for argument in arguments))


@pytest.mark.parametrize(
    "bad",
    [
        (torch.randn(4, 5, 6), torch.randn(4, 5, 6)),
        (FEATURES, FEATURES[:, :1]),
        (FEATURES.long(), FEATURES.long()),
    ],
)
def test_alignment_refuses_what_is_not_two_views(bad):
    with pytest.raises((TypeError, ValueError), match=r"^x"):
        metrics.Alignment().update(*bad)


def test_a_second_view_in_the_place_of_labels_is_told():
    collection = MetricCollection([metrics.Alignment(), metrics.Uniformity()])
    with pytest.raises(TypeError, match=r"second view.*keyword.*x=z_a"):
        collection.update(FEATURES, OTHER)
    collection.reset()
    collection.update(features=FEATURES, x=FEATURES, y=OTHER)
    expected = functional.uniformity(unit_rows(FEATURES)).item()
    assert collection.compute()["Uniformity"].item() == pytest.approx(expected)


def test_the_table_declares_what_update_takes_and_names_a_function():
    words = {"x": ("features", "x"), "y": ("y",), "views": ("views",), "labels": ("labels",)}
    table = {**metrics.METRICS, **metrics.OF_TWO_ENCODERS}
    assert set(table) == set(CASES) == set(functional.__all__)
    for name, kind in table.items():
        parameters = list(inspect.signature(kind.update).parameters.values())[1:]
        declared = [*kind.takes, *kind.optional]
        assert len(parameters) == len(declared)
        for parameter, word in zip(parameters, declared, strict=True):
            assert parameter.name in words[word]
            assert (parameter.default is None) == (word in kind.optional)
        assert set(kind.required) <= set(kind.settings)
        assert set(kind.settings) <= set(inspect.signature(kind).parameters)
        assert getattr(functional, name).__name__ == name


@settings(max_examples=25)
@given(
    rows=st.integers(3, 30),
    dim=st.integers(3, 12),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    rank=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_every_value_lies_within_the_declared_bounds(rows, dim, scale, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(min(rank, dim), dim, generator=generator)
    x, y = (scale * torch.randn(rows, len(basis), generator=generator) @ basis for _ in range(2))
    labels = torch.arange(rows) % 2
    for kind in metrics.METRICS.values():
        metric = kind.build(num_classes=2, fit_range=(1, 3))
        metric.update(*select_inputs(metric.takes, metric.optional, x, y, labels))
        least, most = metric.bounds(rows, dim)
        value = metric.compute().item()
        assert least - 1e-5 <= value <= most + 1e-5 or math.isnan(value), kind


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.alignment(x, x.flip(0), 1.5),
        functional.uniformity,
        functional.wasserstein_uniformity,
        functional.rankme,
        functional.effective_rank,
        functional.nesum,
    ],
)
def test_the_functions_have_the_gradient_of_finite_differences(function):
    x = FEATURES[:20, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(function, (x,), eps=1e-6, atol=1e-5)


def merged(make, parts):
    whole = make()
    for part in parts:
        whole.merge_state(part)
    return whole.compute().item()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_jackknife_tells_how_metrics_change_with_groups_and_without_folds(name):
    make, _, function = CASES[name]
    metric = make()
    grouped = GroupedMetrics({"it": metric}, groups=8)
    grouped.update(FEATURES[:24], OTHER[:24], LABELS[:24])
    grouped.update(FEATURES[24:], OTHER[24:], LABELS[24:])
    parts = grouped._parts[metric._family()]
    found = grouped.compute()["it"]
    assert found.value == pytest.approx(function().item(), rel=1e-6)
    # Each group counts 50 times in all, but one of them 49 or 51 times.
    by_weight = [
        25 * (merged(make, [*parts * 50, part]) - merged(make, [*parts * 49, *others]))
        for part in parts
        for others in [[other for other in parts if other is not part]]
    ]
    expected = (8 / 7 * np.square(by_weight - np.mean(by_weight)).sum()) ** 0.5
    if name not in ("tolerance", "feature_std"):  # they divide by N - 1, which copies change
        assert found.error == pytest.approx(expected, rel=2e-3)
    without = [
        merged(make, [part for place, part in enumerate(parts) if place % 4 != fold])
        for fold in range(4)
    ]
    expected = 4 * function().item() - 3 * np.mean(without)
    assert found.unbiased == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", [*WEIGHTED, "uniformity"])
def test_the_jackknife_of_many_rows_is_the_plain_one_of_each_group(name):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4000, 6, generator=generator).double() * torch.arange(1, 7) + 0.4
    y = x + 0.3 * torch.randn(4000, 6, generator=generator)
    make, _, _ = CASES[name]
    metric = make()
    grouped = GroupedMetrics({"it": metric}, groups=16)
    grouped.update(x, y, torch.arange(4000) % 5)
    parts = grouped._parts[metric._family()]
    without = np.array(
        [merged(make, [part for part in parts if part is not left_out]) for left_out in parts]
    )
    plain = 15 / 16 * np.square(without - without.mean()).sum()
    found = grouped.compute()["it"]
    assert found.error == pytest.approx(plain**0.5, rel=0.02)
    bias = 15 * (without.mean() - found.value)
    assert found.value - found.unbiased == pytest.approx(bias, abs=0.25 * found.error)


def test_samples_that_were_drawn_alike_are_not_merged_beyond_their_size():
    first, second, other = (metrics.Uniformity(max_samples=30, seed=s) for s in (0, 0, 1))
    for metric in (first, second, other):
        metric.update(FEATURES)
    with pytest.raises(ValueError, match=r"max_samples=30.*seed"):
        first.merge_state(second)
    first.merge_state(other)
    assert (first.report().rows, first.report().kept) == (80, 30)
    running = Running(metrics.Uniformity(max_samples=30), window=2)
    for _ in range(2):
        running.update(FEATURES)
    with pytest.raises(ValueError, match="max_samples=30"):
        running.compute()
