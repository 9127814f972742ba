"""The bench command end to end: what it writes, that it is right, and how it fails."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from hsplugin.bench import contenders, measuring
from hsplugin.cli import main
from tests import reference


def sphere(n: int, d: int) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("name", [n for n in contenders.CONTENDERS if n != "gram-compiled"])
def test_every_contender_computes_the_same_value_and_gradient(name):
    x, t = sphere(80, 16), 2.0
    expected, expected_gradient = reference.value_and_gradient(
        lambda z: reference.log_mean_potential(z, t), x.double()
    )
    try:
        value, gradient = reference.value_and_gradient(
            lambda z: contenders.CONTENDERS[name].function(z, t), x
        )
    except contenders.UnavailableError as error:
        pytest.skip(str(error))
    assert abs(value.item() - expected.item()) < 2e-6
    # A loss that normalises takes the radial part, to which the potential is not blind, out.
    tangential = expected_gradient - (expected_gradient * x).sum(1, keepdim=True) * x
    wanted = tangential if name.endswith("-loss") else expected_gradient
    assert (gradient - wanted).abs().max().item() < 2e-5


@pytest.mark.parametrize("n", [2, 3, 257])
def test_exact_value_is_that_of_the_definition(n):
    x = sphere(n, 9)
    assert contenders.exact(x, 3.0) == pytest.approx(
        reference.log_mean_potential(x, 3.0).item(), abs=1e-10
    )


def test_a_contender_that_would_not_fit_says_so(monkeypatch):
    monkeypatch.setattr(measuring, "_free_bytes", lambda device: 2.0**20)
    setting = measuring.Setting(1000, 4, torch.float32, "cpu", 2.0, "forward")
    found = {r.contender: r for r in measuring.measure(setting, ["pdist", "tiled"], 0.01)}
    assert "GiB" in found["pdist"].note and not found["pdist"].seconds
    assert found["tiled"].seconds and math.isnan(found["tiled"].ratio)


def test_peak_memory_tells_the_quadratic_from_the_linear():
    setting = measuring.Setting(3000, 8, torch.float32, "cpu", 2.0, "forward+backward")
    quadratic = measuring.peak_mib("gram", setting)
    if math.isnan(quadratic):
        pytest.skip("this system does not tell the highest resident size")
    matrix = 3000**2 * 4 / 2**20
    assert quadratic > 2 * matrix
    assert measuring.peak_mib("tiled", setting) < matrix


def test_command_writes_table_rows_and_picture(tmp_path, capsys):
    arguments = ["--sizes", "16x4", "40x4", "--contenders", "tiled", "pdist", "--seconds", "0.01"]
    threads = torch.get_num_threads()
    try:
        assert main(["bench", *arguments, "--threads", "1", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3  # two contenders and the ceiling
    for row in rows:
        assert float(row["median_ms"]) > 0 and int(row["rounds"]) >= 3
        if row["contender"] in ("tiled", "pdist"):
            assert float(row["error"]) < 1e-6
        if row["contender"] == "pdist":
            assert float(row["ratio"]) == 1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "tiled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "12"], "NxD"),
        (["--sizes", "1x4"], "N >= 2"),
        (["--dtypes", "flaot32"], "did you mean float32"),
        (["--contenders", "pdits"], "did you mean pdist"),
        (["--device", "tpu"], "unknown device"),
        (["--t", "-1"], "--t must be above 0"),
        (["--t", "inf"], "--t must be above 0 and finite"),
        (["--seconds", "nan"], "--seconds must be above 0"),
        (["--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_results_that_cannot_be_written_are_told_before_anything_is_measured(capsys, tmp_path):
    (tmp_path / "bench.csv").mkdir()
    assert main(["bench", "--sizes", "16x4", "--seconds", "0.01", "--out", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "--out" in output.err and output.err.count("\n") == 1
    assert not output.out
