"""A whole sweep in small: trained, killed, resumed, tabled and drawn."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from hsplugin.sweep.report import FILES

ROOT = Path(__file__).parents[2]
GRID = """
- {method: align_uniform, align_share: [0.0, 0.5, 1.0]}
- {method: simclr, temperature: 0.2, dim: 16}
"""
BUDGET = ["--train-size", "200", "--epochs", "2", "--batch-size", "50", "--threads", "1"]


def command(folder: Path) -> list[str]:
    grid = folder / "grid.yaml"
    grid.write_text(GRID)
    out = ["--out", str(folder / "out"), "--grid", str(grid)]
    return [sys.executable, "-m", "hsplugin.cli", "sweep", *BUDGET, *out]


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    done = subprocess.run(
        command(folder), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Spearman" in done.stdout
    return folder


@pytest.mark.slow
def test_there_is_one_row_an_encoder_with_its_hyper_parameters(swept: Path):
    table = rows(swept)
    assert [row["align_share"] for row in table] == ["0.0", "0.5", "1.0", ""]
    assert [row["dim"] for row in table] == ["64", "64", "64", "16"]
    assert table[3]["temperature"] == "0.2"


@pytest.mark.slow
def test_the_metrics_are_those_of_the_projections_that_were_kept(swept: Path):
    for row in rows(swept):
        pairs = torch.load(swept / "out" / "runs" / row["run"] / "pairs.pt", weights_only=True)
        a, b = pairs["a"].double(), pairs["b"].double()
        align = (a - b).square().sum(1).mean().item()
        uniform = sum(torch.pdist(x).square().mul(-2).exp().mean().log().item() / 2 for x in (a, b))
        assert float(row["alignment"]) == pytest.approx(align, rel=2e-3, abs=1e-4)
        assert float(row["uniformity"]) == pytest.approx(uniform, rel=2e-3, abs=1e-3)
        singular = torch.linalg.svdvals(a)
        p = singular / singular.sum()
        rank = torch.exp(-(p * p.clamp(min=1e-12).log()).sum()).item()
        assert float(row["rankme"]) == pytest.approx(rank, rel=1e-3)


@pytest.mark.slow
def test_the_coefficients_are_those_of_the_table(swept: Path):
    table = rows(swept)
    with (swept / "out" / "agreement.csv").open() as file:
        found = {
            (row["metric"], row["accuracy"], row["statistic"]): row for row in csv.DictReader(file)
        }
    for metric in ("alignment", "uniformity", "align_plus_uniform", "rankme"):
        x, y = ([float(row[name]) for row in table] for name in (metric, "knn"))
        expected = stats.kendalltau(x, y).statistic
        assert float(found[metric, "knn", "kendall"]["value"]) == pytest.approx(expected)
        assert found[metric, "knn", "kendall"]["encoders"] == "4"


@pytest.mark.slow
def test_all_files_that_it_names_are_there(swept: Path):
    for name in FILES:
        assert (swept / "out" / name).stat().st_size > 300
    document = (swept / "out" / "agreement.md").read_text()
    assert "4 encoders" in document and "sweep --train-size 200" in document


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_table(swept: Path, tmp_path: Path):
    first = subprocess.Popen(
        command(tmp_path), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    runs = tmp_path / "out" / "runs"
    deadline = time.monotonic() + 200
    while not list(runs.glob("*/result.json")) and time.monotonic() < deadline:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out" / "sweep.csv").exists()
    again = subprocess.run(
        command(tmp_path), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert "done already" in again.stderr
    changing = ("seconds", "provenance")
    there, here = (
        [{k: v for k, v in row.items() if k not in changing} for row in rows(folder)]
        for folder in (swept, tmp_path)
    )
    assert there == here


def test_an_unknown_data_set_is_one_line_and_status_two(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "hsplugin.cli", "sweep", "--data", "digit", "--out", str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "did you mean digits" in done.stderr
