"""Values and intervals of the metrics of a file, against their definitions in float64."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsplugin.cli import main
from hsplugin.measure import geometry, rows
from hsplugin.metrics import METRICS
from hsplugin.readers import Array
from tests.measure.files import LABELS, RANDOM, SAVERS, X, Y, save_npy
from tests.metrics import definitions

# Leaving out rows to tell their spread would take as long again for each group.
WITHOUT_INTERVAL = {"intrinsic_dimension", "cluster_learnability", "per_class_rank", "knn"}


def measured(folder, *arguments):
    assert main(["measure", *arguments, "--json", str(folder / "out.json")]) == 0
    return json.loads((folder / "out.json").read_text())["files"]


@pytest.mark.parametrize("chunk_bytes", [2**25, 14 * 8 * 16])
@pytest.mark.parametrize("save", SAVERS)
def test_every_kind_of_file_gives_the_defined_values(save, chunk_bytes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "CHUNK_BYTES", chunk_bytes)
    (file,) = measured(tmp_path, *save(tmp_path), "--fit-range", "2", "10")
    assert (file["rows"], file["dim"]) == (150, 14)
    unit_x, unit_y = definitions.unit(X), definitions.unit(Y)
    expected = {
        "alignment": definitions.alignment(unit_x, unit_y),
        "uniformity": definitions.uniformity(unit_x),
        "wasserstein_uniformity": definitions.wasserstein_uniformity(unit_x),
        "rankme": definitions.rankme(X),
        "effective_rank": definitions.effective_rank(X),
        "alpha_req": definitions.alpha_req(X, 2, 10),
        "nesum": definitions.nesum(X),
        "lidar": definitions.lidar(np.stack([X, Y], axis=1)),
        "stable_rank": definitions.stable_rank(X),
        "condition_number": np.linalg.cond(X),
        "feature_std": definitions.feature_std(X),
        "intrinsic_dimension": definitions.intrinsic_dimension(unit_x),
        "cluster_learnability": definitions.cluster_learnability(unit_x, 12),
        "per_class_rank": definitions.per_class_rank(X, LABELS),
        "knn": definitions.knn(X, LABELS, 149),
        "tolerance": definitions.tolerance(unit_x, LABELS),
        "tolerance_conditional": definitions.tolerance(unit_x, LABELS, conditional=True),
    }
    values = {name: metric["value"] for name, metric in file["metrics"].items()}
    assert values == pytest.approx(expected, rel=2e-5)
    without = {name for name, metric in file["metrics"].items() if metric["interval"] is None}
    assert without == WITHOUT_INTERVAL
    for name in set(file["metrics"]) - without:
        low, high = file["metrics"][name]["interval"]
        assert low < high, name
    classes = file["uniformity"]["per_class"]
    first = next(iter(classes))
    assert first in ("0", "kind 0")
    assert classes[first] == pytest.approx(definitions.uniformity(unit_x[LABELS == 0]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("deviations", [np.arange(1, 13) ** -0.5, np.ones(12)])
def test_intervals_cover_the_truth_as_often_as_they_say(deviations):
    random = np.random.default_rng(1)

    def population(rows):
        return random.normal(size=(rows, 12)) * deviations + 0.3

    truth = geometry_of(population(500_000), intervals=False, fit_range=(2, 12)).metrics
    covered = dict.fromkeys(truth.keys() - WITHOUT_INTERVAL, 0)
    for _ in range(60):
        metrics = geometry_of(population(600), fit_range=(2, 12), max_samples=600).metrics
        for name in covered:
            low, high = metrics[name].interval
            covered[name] += low <= truth[name].value <= high
    # 57 are expected; fewer than 50 occur once in a thousand runs.
    assert min(covered.values()) >= 50, covered


KINDS = ["flat", "orthogonal", "decaying", "far", "collapsed", "constant"]
KINDS += ["zero", "line", "duplicates", "uneven", "huge", "holes"]


def odd_rows(kind, rows, dim, random):
    x = random.normal(size=(rows, dim))
    return {
        "flat": x,
        "orthogonal": np.resize(np.concatenate([np.eye(dim), -np.eye(dim)]), (rows, dim)),
        "decaying": x * np.arange(1, dim + 1) ** -2.0,
        "far": x + 1000,
        "collapsed": np.ones((rows, dim)) + 1e-9 * x,
        "constant": np.ones((rows, dim)),
        "zero": np.zeros((rows, dim)),
        "line": x[:, :1] * np.ones(dim),
        "duplicates": x[np.arange(rows) % 3],
        "uneven": x * np.where(np.arange(rows) % 2, 1e-9, 1e9)[:, None],
        "huge": x * 1e300,
        "holes": x * (np.arange(rows) % 4 > 0)[:, None],
    }[kind]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(4, 90),
    dim=st.integers(1, 8),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_interval_holds_its_value_and_stays_in_the_metrics_range(
    kind, rows, dim, normalize, seed
):
    random = np.random.default_rng(seed)
    x = odd_rows(kind, rows, dim, random)
    y = x[::-1] if seed % 2 else x
    # Off the sphere, squares of 1e18 beside 1e-18 are beyond the digits of float64.
    options = {"normalize": normalize or kind in ("huge", "uneven")}
    fit_range = (1, 3) if dim > 1 else None
    found = geometry_of(x, y, np.arange(rows) % 2, fit_range=fit_range, **options)
    assert {"uniformity", "rankme", "nesum"} <= set(found.metrics)
    for name, estimate in found.metrics.items():
        metric = METRICS[name.removesuffix("_conditional")].build(num_classes=2, **options)
        least, most = metric.bounds(rows, dim)
        rounding = 1e-6 * max(1.0, abs(estimate.value))
        if estimate.interval is None:
            known = math.isfinite(estimate.value) and not estimate.missing
            assert not known or name in WITHOUT_INTERVAL, name
            continue
        low, high = estimate.interval
        assert low <= estimate.value <= high, name
        assert low <= estimate.unbiased <= high, name
        assert least - rounding <= low <= high <= most + rounding, name


def test_a_flat_spectrum_has_its_value_inside_the_interval_of_its_rank(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(4000, 48)))
    (file,) = measured(tmp_path, "x.npy")
    for name, value in (("rankme", 48.0), ("effective_rank", 48.0), ("nesum", 48.0)):
        metric = file["metrics"][name]
        low, high = metric["interval"]
        assert low <= metric["value"] < metric["unbiased"] <= high <= value + 0.01
        assert abs(metric["unbiased"] - value) < abs(metric["value"] - value)


def as_array(name, x):
    return Array(
        name, len(x), x.shape[1:], lambda rows: iter(np.split(x, range(rows, len(x), rows)))
    )


def geometry_of(x, y=None, labels=None, **options):
    arrays = [None if a is None else as_array("x", a) for a in (x, y, labels)]
    return geometry.measure(*arrays, geometry.Options(**options))


def test_uniformity_of_more_rows_than_the_sample_names_the_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    (file,) = measured(tmp_path, "x.npy", "--max-samples", "60")
    assert file["uniformity"]["kept"] == 60
    low, high = file["metrics"]["uniformity"]["interval"]
    assert low < definitions.uniformity(definitions.unit(X)) < high
    printed = capsys.readouterr().out
    assert "from a sample of 60" in printed
    assert "attainable" in printed


def test_spectra_of_few_rows_get_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X[:139])
    (file,) = measured(tmp_path, "x.npy")
    assert file["metrics"]["rankme"]["interval"] is None
    assert file["metrics"]["uniformity"]["interval"] is not None
    assert "from 140 rows on" in capsys.readouterr().out


def test_without_intervals_and_normalisation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    arguments = ["x.npy", "--no-intervals", "--no-normalize", "--t", "0.1"]
    (file,) = measured(tmp_path, *arguments)
    assert file["metrics"]["uniformity"]["interval"] is None
    expected = definitions.uniformity(X, 0.1)
    assert file["metrics"]["uniformity"]["value"] == pytest.approx(expected, rel=1e-5)


def test_a_picture_of_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    np.save("plane.npy", X[:, :2])
    np.save("other.npy", Y[:, :2])
    arguments = ["x.npy", "plane.npy", "--positive", "y.npy", "--positive", "other.npy"]
    assert main(["measure", *arguments, "--labels", "l.npy", "--picture", "p.png"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "rows", [np.ones((200, 6)), RANDOM.normal(size=(200, 1)), np.zeros((9, 3))]
)
def test_values_without_spread_get_an_interval_of_one_point(rows, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", rows)
    (file,) = measured(tmp_path, "x.npy", "--positive", "x.npy")
    low, high = file["metrics"]["alignment"]["interval"]
    assert low == high == file["metrics"]["alignment"]["value"] == 0
    for metric in file["metrics"].values():
        assert metric["interval"] is None or metric["interval"][0] <= metric["interval"][1]
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_of_any_length_have_their_direction_measured(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    powers = {"f2": (-3, 4), "f4": (-36, 37), "f8": (-300, 307)}[dtype]
    lengths = 10.0 ** np.random.default_rng(3).uniform(*powers, size=(150, 1)) / 8
    lengths[5] = 0
    np.save("x.npy", (X * lengths).astype(dtype))
    (file,) = measured(tmp_path, "x.npy", "--no-intervals")
    expected = definitions.unit(X)
    expected[5] = 0
    accuracy = 1e-2 if dtype == "f2" else 1e-5
    found = file["metrics"]["uniformity"]["value"]
    assert file["zero_rows"] == 1
    assert found == pytest.approx(definitions.uniformity(expected), rel=accuracy)


@pytest.mark.parametrize("more", [[], ["--no-intervals"]])
def test_metrics_that_overflow_are_told_beside_those_that_do_not(
    more, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X.astype("f8") * 1e200)
    np.save("y.npy", Y.astype("f8") * 1e200)
    arguments = ["x.npy", "--positive", "y.npy", "--no-normalize", *more]
    (file,) = measured(tmp_path, *arguments)
    values = {name: metric["value"] for name, metric in file["metrics"].items()}
    missing = {name for name, value in values.items() if value is None}
    assert missing == {"alignment", "uniformity", "wasserstein_uniformity", "lidar"}
    assert values["rankme"] == pytest.approx(definitions.rankme(X), rel=1e-6)
    assert capsys.readouterr().out.count("features are too large for it") == 4


@pytest.mark.parametrize("x", [np.ones((200, 6)), np.zeros((9, 3)), np.ones((20, 2))])
def test_features_without_spread_can_be_drawn(x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x)
    assert main(["measure", "x.npy", "--picture", "p.png"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", [("--t", "1e38"), ("--t", "inf"), ("--device", "meta")])
def test_options_that_cannot_be_are_refused(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    assert main(["measure", "x.npy", *option]) == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("x", [X, np.ones((200, 6))])
def test_a_confidence_next_to_one_has_finite_intervals(x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x)
    (file,) = measured(tmp_path, "x.npy", "--confidence", "0.9999999999999999")
    low, high = file["metrics"]["nesum"]["interval"]
    assert 0 <= low <= file["metrics"]["nesum"]["value"] <= high <= x.shape[1]


@pytest.mark.parametrize(("max_samples", "shown"), [(10_000, 150), (60, 60)])
def test_the_sample_to_draw_is_that_of_uniformity(max_samples, shown):
    assert len(geometry_of(X, max_samples=max_samples).sample) == shown


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_which_rounding_would_decide_the_uniformity_are_refused(tmp_path, capsys, dtype):
    rows = np.random.default_rng(0).standard_normal((64, 8)).astype(dtype)
    path = tmp_path / "x.npy"
    for longest, refused in ((100.0, False), (1e9, True)):
        x = rows.copy()
        x[:32] *= longest
        x[32:] /= longest
        np.save(path, x)
        status = main(["measure", str(path), "--no-normalize", "--json", str(tmp_path / "x.json")])
        error = capsys.readouterr().err
        assert (status, "--no-normalize" in error) == ((2, True) if refused else (0, False))
        assert "Traceback" not in error and error.count("\n") <= 1
        if not refused:
            (file,) = json.loads((tmp_path / "x.json").read_text())["files"]
            found = file["metrics"]["uniformity"]["value"]
            assert found == pytest.approx(definitions.uniformity(x), rel=0.05)
