"""Values and intervals of the metrics of a file, against their definitions in float64."""

import json

import numpy as np
import pytest

from hsplugin.cli import main
from hsplugin.measure import geometry, rows
from hsplugin.measure.readers import Array
from tests.measure.files import LABELS, RANDOM, SAVERS, X, Y, save_npy
from tests.metrics import definitions


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
        "tolerance": definitions.tolerance(unit_x, LABELS),
        "tolerance_conditional": definitions.tolerance(unit_x, LABELS, conditional=True),
    }
    values = {name: metric["value"] for name, metric in file["metrics"].items()}
    assert values == pytest.approx(expected, rel=2e-5)
    for name, metric in file["metrics"].items():
        low, high = metric["interval"]
        assert low < high, name
    classes = file["uniformity"]["per_class"]
    first = next(iter(classes))
    assert first in ("0", "kind 0")
    assert classes[first] == pytest.approx(definitions.uniformity(unit_x[LABELS == 0]), rel=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    deviations = np.arange(1, 13) ** -0.5

    def population(rows):
        return RANDOM.normal(size=(rows, 12)) * deviations + 0.3

    truth = geometry_of(population(500_000), intervals=False, fit_range=(1, 12)).metrics
    covered = dict.fromkeys(truth, 0)
    for _ in range(60):
        metrics = geometry_of(population(600), fit_range=(1, 12), max_samples=600).metrics
        for name in covered:
            low, high = metrics[name].interval
            covered[name] += low <= truth[name].value <= high
    # 57 are expected; fewer than 50 occur once in a thousand runs.
    assert min(covered.values()) >= 50, covered


def geometry_of(x, **options):
    array = Array(
        "x", len(x), x.shape[1:], lambda rows: iter(np.split(x, range(rows, len(x), rows)))
    )
    return geometry.measure(array, None, None, geometry.Options(**options))


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


@pytest.mark.parametrize(("max_samples", "shown"), [(10_000, 150), (60, 60)])
def test_the_sample_to_draw_is_that_of_uniformity(max_samples, shown):
    assert len(geometry_of(X, max_samples=max_samples).sample) == shown
