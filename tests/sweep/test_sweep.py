"""A small sweep: trained, killed, resumed, tabled and drawn."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from hsplugin.compare import command as compare
from hsplugin.flags import complete
from hsplugin.lab.files import write_json
from hsplugin.lab.request import shared_settings
from hsplugin.lab.run import Run
from hsplugin.lab.settings import RunSettings
from hsplugin.sweep.command import DEFAULTS, add_arguments
from hsplugin.sweep.grid import DEFAULT_GRID, encoders, read_grid
from hsplugin.sweep.report import FILES
from tests.compare.running import error_line

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


def test_an_unknown_data_set_is_one_line_and_status_two(capsys, tmp_path: Path):
    said = error_line(capsys, "--data", "digit", "--out", str(tmp_path), command="sweep")
    assert "did you mean digits" in said


@pytest.mark.parametrize(
    "flags",
    [
        ["--dim", "1"],
        ["--batch-size", "1"],
        ["--lr", "nan"],
        ["--random", "0"],
        ["--jobs", "0"],
        ["--labels-per-class", "-1"],
    ],
)
def test_nonsense_is_one_line_that_names_the_flag(capsys, tmp_path: Path, flags: list[str]):
    said = error_line(capsys, "--out", str(tmp_path / "out"), *flags, command="sweep")
    assert f"{flags[0]} must be" in said
    assert not (tmp_path / "out").exists()


def asked(*argv: str) -> list[RunSettings]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = complete(parser.parse_args(argv), add_arguments, DEFAULTS)
    grids = read_grid(ROOT / args.grid) if args.grid else DEFAULT_GRID
    return encoders(grids, shared_settings(args), args.random, args.seed)


def test_the_published_command_still_asks_for_the_published_encoders(tmp_path: Path):
    published = ROOT / "examples" / "results" / "sweep"
    with (published / "sweep.csv").open() as file:
        names = [row["run"] for row in csv.DictReader(file)]
    document = (published / "agreement.md").read_text()
    [line] = re.findall("^- Command: `hsplugin sweep (.*) --out sweep`$", document, re.MULTILINE)
    # It trained in float32, and a folder keeps the precision of its runs on any machine.
    run = Run(tmp_path / "runs" / names[0])
    run.folder.mkdir(parents=True)
    write_json(run.settings, {"method": "align_uniform", "options": {}, "precision": "32-true"})
    argv = [*shlex.split(line), "--out", str(tmp_path)]
    assert [settings.name for settings in asked(*argv)] == names


def test_defaults_are_those_that_compare_has_on_the_same_data():
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    args = complete(parser.parse_args([]), compare.add_arguments, compare.DEFAULTS)
    theirs, ours = shared_settings(args), asked()[0].shared()
    assert (ours["batch_size"], ours["labels_per_class"], ours["epochs"]) == (128, 5, 60)
    # A sweep looks only at the end of a run, and trains Lightly's methods only.
    assert {k for k in theirs if theirs[k] != ours[k]} == {"validations"}


def started(out: Path, **settings: object) -> None:
    one = RunSettings("simclr", **{**asked()[0].shared(), **settings})
    run = Run.of(one, out)
    run.folder.mkdir(parents=True)
    write_json(run.settings, one.as_dict())


def test_settings_that_no_grid_varies_are_not_mixed_into_a_folder(capsys, tmp_path: Path):
    started(tmp_path, labels_per_class=None)
    grid = tmp_path / "grid.yaml"
    grid.write_text("{method: simclr}")
    said = error_line(capsys, "--out", str(tmp_path), "--grid", str(grid), command="sweep")
    assert "labels_per_class None there, 5 asked for" in said and "epochs" not in said


@pytest.mark.slow
def test_a_config_file_asks_for_the_same_encoders_and_other_grids_may_join_them(tmp_path: Path):
    grid, config, out = tmp_path / "grid.yaml", tmp_path / "sweep.yaml", tmp_path / "out"
    grid.write_text("{method: simclr, temperature: [0.2, 0.5]}\n")
    config.write_text(
        f"grid: {grid}\nout: {out}\ntrain-size: 200\nepochs: 1\nbatch-size: 50\n"
        "labels-per-class: 3\nthreads: 1\nseed: 5\n"
    )
    run = [sys.executable, "-m", "hsplugin.cli", "sweep", "--config", str(config)]
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*run, "--epochs", "2"], **options)
    assert done.returncode == 0, done.stderr
    with (out / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["temperature"] for row in table] == ["0.2", "0.5"]
    assert {(r["epochs"], r["seed"], r["batch_size"]) for r in table} == {("2", "5", "50")}
    settings = json.loads((out / "runs" / table[0]["run"] / "settings.json").read_text())
    assert settings["labels_per_class"] == 3
    refused = subprocess.run(run, **options)
    assert refused.returncode == 2 and "epochs 2 there, 1 asked for" in refused.stderr
    grid.write_text("{method: simclr, temperature: [0.2], epochs: [1, 2]}\n")
    joined = subprocess.run(run, **options)
    assert joined.returncode == 0 and "1 of 2 runs are done already" in joined.stderr
