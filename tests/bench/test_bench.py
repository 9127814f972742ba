"""The bench command end to end: what it writes, that it is right, and how it fails."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from hsplugin.bench import contenders, measuring, rows
from hsplugin.cli import main
from tests import reference

COMPARED = [
    name
    for name, contender in contenders.CONTENDERS.items()
    if name != "gram-compiled" and not contender.yardstick
]


def sphere(n: int, d: int) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("name", COMPARED)
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
    # The gradient of a loss that normalises has no radial part.
    tangential = expected_gradient - (expected_gradient * x).sum(1, keepdim=True) * x
    wanted = tangential if contenders.CONTENDERS[name].normalizes else expected_gradient
    assert (gradient - wanted).abs().max().item() < 2e-5


@pytest.mark.parametrize("n", [2, 3, 257])
def test_exact_value_is_that_of_the_definition(n):
    x = sphere(n, 9)
    assert rows.exact(x, 3.0) == pytest.approx(
        reference.log_mean_potential(x, 3.0).item(), abs=1e-10
    )


@pytest.mark.parametrize("copies", [1, 3])
def test_expected_value_and_gradient_are_those_of_the_copies(copies: int) -> None:
    base = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    value, gradient = rows.expected(base, 7 * copies, 2.0)
    wanted, wanted_gradient = reference.value_and_gradient(
        lambda x: reference.log_mean_potential(x, 2.0), base.repeat(copies, 1)
    )
    assert value == pytest.approx(wanted.item(), abs=1e-12)
    assert torch.allclose(gradient, wanted_gradient[:7], atol=1e-12, rtol=0)
    assert copies > 1 or value == pytest.approx(rows.exact(base, 2.0), abs=1e-12)


@pytest.mark.parametrize("n", [2, 700, 8192, 20_000, 65_536, 10_007])
def test_many_rows_are_copies_of_few(n):
    setting = measuring.Setting(n, 4, "float32", "cpu", 2.0, "forward")
    distinct, x = setting.distinct(), setting.features()
    assert x.shape == (n, 4) and torch.equal(x, distinct.repeat(n // len(distinct), 1))
    assert len(distinct) == n if n in (2, 700, 8192, 10_007) else 512 <= len(distinct) <= 8192
    assert torch.allclose(x.norm(dim=1), torch.ones(n))


def test_a_contender_that_fails_is_noted_and_the_rest_is_measured(monkeypatch):
    def broken(x, t):
        raise RuntimeError("no such kernel\nand more")

    contender = contenders.Contender(broken, 0, "broken")
    monkeypatch.setitem(contenders.CONTENDERS, "broken", contender)
    setting = measuring.Setting(30, 4, "float32", "cpu", 2.0, "forward+backward")
    first, second = measuring.measure(setting, ["broken", "tiled"], 0.01, ceiling=False)
    assert first.note == "RuntimeError: no such kernel" and not first.seconds
    assert len(second.seconds) >= 3 and second.error < 1e-6 and second.gradient_error < 1e-5


def test_a_contender_that_would_not_fit_is_noted(monkeypatch):
    monkeypatch.setattr(measuring, "_free_bytes", lambda device: 2.0**20)
    setting = measuring.Setting(1000, 4, "float32", "cpu", 2.0, "forward")
    found = {r.contender: r for r in measuring.measure(setting, ["pdist", "tiled"], 0.01)}
    assert "GiB" in found["pdist"].note and not found["pdist"].seconds
    assert found["tiled"].seconds and math.isnan(found["tiled"].ratio)


def test_peak_memory_distinguishes_quadratic_from_linear():
    setting = measuring.Setting(3000, 8, "float32", "cpu", 2.0, "forward+backward")
    quadratic = measuring.peak_mib("gram", setting)
    if math.isnan(quadratic):
        pytest.skip("this system does not report the peak resident size")
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
def test_mistakes_are_reported_in_one_line(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_results_that_cannot_be_written_are_reported_before_anything_is_measured(capsys, tmp_path):
    (tmp_path / "bench.csv").mkdir()
    assert main(["bench", "--sizes", "16x4", "--seconds", "0.01", "--out", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "--out" in output.err and output.err.count("\n") == 1
    assert not output.out
