"""A small hsplugin compare: tables, tuning, errors."""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hsplugin import cli
from hsplugin.compare.command import DEFAULTS, add_arguments, all_settings
from hsplugin.flags import complete
from hsplugin.lab import runs
from hsplugin.lab.locks import locked
from hsplugin.lab.request import machine
from tests.compare.running import FLAGS, error_line, finish, start, table


@pytest.mark.slow
def test_every_run_has_a_row_with_its_settings_measures_and_provenance(compared: Path):
    rows = table(compared / "results.csv")
    assert [row["method"] for row in rows] == ["untrained", "simclr", "moco"]
    for row in rows:
        assert 0 <= float(row["alignment"]) <= 4
        assert -8 <= float(row["uniformity"]) <= 0
        for accuracy in ("knn", "linear", "best_knn", "best_linear", "validation_knn"):
            assert 0 <= float(row[accuracy]) <= 100
    with (compared / "results.csv").open() as file:
        provenance = json.loads(next(csv.DictReader(file))["provenance"])
    assert provenance["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    epochs = [(row["method"], row["epoch"]) for row in table(compared / "history.csv")]
    assert epochs[1:5] == [("simclr", str(epoch)) for epoch in range(4)]
    assert "± standard deviation" in (compared / "summary.md").read_text()
    # The kept answers are those that the table counts.
    for row in rows:
        run = compared / "runs" / row["run"]
        answers = torch.load(run / "answers.pt", weights_only=True)
        for name in ("knn", "linear", "best_knn", "best_linear"):
            assert answers[name].shape == (500,)
            assert float(row[name]) == pytest.approx(100 * answers[name].mean().item())
            error = 100 * answers[name].std(correction=0).item() / 500**0.5
            assert float(row[f"{name}_se"]) == pytest.approx(error)
    differences = list(csv.DictReader((compared / "differences.csv").open()))
    accuracy = {row["method"]: float(row["linear"]) for row in rows}
    found = {(d["accuracy"], d["first"], d["second"]): float(d["difference"]) for d in differences}
    assert len(found) == 4 * 3
    assert found["linear", "simclr", "moco"] == pytest.approx(accuracy["simclr"] - accuracy["moco"])
    with (compared / "results.csv").open() as file:
        speeds = [row["images_per_second"] for row in csv.DictReader(file)]
    assert speeds[0] == "" and all(float(speed) > 0 for speed in speeds[1:])


@pytest.mark.slow
def test_the_pictures_show_something(compared: Path):
    from PIL import Image

    for name in ("plane.png", "histograms.png"):
        pixels = np.asarray(Image.open(compared / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert "<svg" in (compared / "plane.svg").read_text()


@pytest.mark.slow
def test_tuning_chooses_the_best_on_the_validation_split_and_resumes(tmp_path):
    out = tmp_path / "out"
    flags = ("--methods", "simclr", "moco", "--tune", "--set", "moco.temperature=0.2")
    finish(start(out, *flags))
    with (out / "tuning.csv").open() as file:
        candidates = list(csv.DictReader(file))
    assert [c["method"] for c in candidates] == ["simclr"] * 5 + ["moco"] * 2
    scores: dict[tuple[str, str], list[float]] = {}
    for path in out.glob("tuning/runs/*/result.json"):
        result = json.loads(path.read_text())
        settings = json.loads(path.with_name("settings.json").read_text())
        key = result["method"], json.dumps(settings["options"])
        accuracy = (result["validation_knn"] + result["validation_linear"]) / 2
        scores.setdefault(key, []).append(accuracy)
    assert {len(of_seeds) for of_seeds in scores.values()} == {2}
    for candidate in candidates:
        mean = sum(scores[candidate["method"], candidate["options"]]) / 2
        assert float(candidate["mean"]) == pytest.approx(mean)
    for method in ("simclr", "moco"):
        own = [c for c in candidates if c["method"] == method]
        (chosen,) = (json.loads(c["options"]) for c in own if c["chosen"] == "True")
        assert max(own, key=lambda c: float(c["mean"]))["chosen"] == "True"
        (row,) = (r for r in table(out / "results.csv") if r["method"] == method)
        assert chosen.items() <= json.loads(row["options"]).items()
    assert all(json.loads(c["options"])["temperature"] == 0.2 for c in candidates[5:])
    assert "chosen" in (out / "summary.md").read_text()
    # A choice is final, even if others would be chosen now or no tuning is asked for.
    before = table(out / "results.csv")
    finish(start(out, "--methods", "vicreg", "--no-tune"))
    assert "temperature 0.1" in (out / "summary.md").read_text()
    process = start(out, "--methods", "vicreg", "--tune")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2 and "holds runs of vicreg that were not tuned" in stderr
    for path in out.glob("runs/vicreg*/*"):
        path.unlink()
    _, stderr = finish(start(out, *flags))
    assert "14 of 14 runs are done already" in stderr and "3 of 3 runs are done" in stderr
    assert table(out / "results.csv") == before


@pytest.mark.slow
def test_a_list_of_values_is_a_method_each_and_a_folder_without_answers_is_still_read(tmp_path):
    out = tmp_path / "out"
    flags = ("--methods", "simclr", "--set")
    finish(start(out, *flags, "simclr.temperature=[0.2]"))
    # Values that are asked for may join those that are there; those not asked for stay out.
    finish(start(out, *flags, "simclr.temperature=[0.2, 1.0]"))
    process = start(out, *flags, "simclr.temperature=1.0")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2 and "options of simclr {'temperature': 0.2} there" in stderr
    summary = (out / "summary.md").read_text()
    assert "| simclr (temperature 0.2) |" in summary and "| simclr (temperature 1.0) |" in summary
    assert "≈" in summary and "precision" in summary
    # Earlier versions kept no answers, no errors and no speed.
    for path in out.glob("runs/*/answers.pt"):
        path.unlink()
    for path in out.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        later = {k for k in result if k.endswith("_se") or k == "images_per_second"}
        path.write_text(json.dumps({k: v for k, v in result.items() if k not in later}))
    finish(start(out, *flags, "simclr.temperature=[0.2, 1.0]"))
    summary = (out / "summary.md").read_text()
    assert "| simclr (temperature 0.2) |" in summary
    assert "≈" not in summary and "standard error" not in summary


@pytest.mark.slow
def test_other_settings_are_not_mixed_into_a_folder(compared: Path, capsys):
    before = (compared / "results.csv").read_bytes()
    for flags in (["--lr", "0.1"], ["--set", "simclr.temperature=0.1"]):
        argv = ["compare", *FLAGS, "--out", str(compared), "--methods", "simclr", *flags]
        assert cli.main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "other settings" in error
        assert flags[-1].split("=")[-1] in error
    assert (compared / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "simclrr"], "did you mean simclr?"),
        (["--data", "digitz"], "did you mean digits?"),
        (["--set", "simclr.temprature=1"], "did you mean temperature?"),
        (["--set", "simclr=1"], "METHOD.OPTION=VALUE"),
        (["--set", "simclr.temperature=[]"], "at least one value"),
        (["--set", "simclr.temperature=[1, 2]", "--tune"], "one value an option"),
        (["--set", "simclr.temperature=!!python/name:os.system"], "is not a YAML value"),
        (["--set", "simclr.temperature=!!timestamp x"], "is not a YAML value"),
        (["--set", "simclr.temperature=2020-01-01"], "must be a number, got date"),
        (["--set", "simclr.temperature={a: 1}"], "must be a number, got dict"),
        (["--set", "simclr.temperature=.nan"], "must be finite"),
        (["--set", "simclr.hidden=1.5"], "must be an integer"),
        (["--set", "simclr.lr=nan"], "simclr.lr must be finite"),
        (["--set", "simclr.lr=1", "simclr.lr=2"], "--set gives simclr.lr twice"),
        (["--weight-decay", "inf"], "--weight-decay must be finite"),
        (["--seeds", "99999999999"], "--seeds must be at most"),
        (["--jobs", "100000"], "--jobs must be at most 1024"),
        (["--epochs", "0"], "at least 1"),
        (["--precision", "16-mixed", "--accelerator", "cpu"], "needs a GPU"),
        (["--framework", "solo"], "--solo-checkout DIR"),
        (["--framework", "solo", "--tune"], "use --set"),
        (["--config", "no-such-file.yaml"], "cannot read no-such-file.yaml"),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys, tmp_path, flags, said):
    assert said in error_line(capsys, "--out", str(tmp_path), *flags)


def test_a_config_file_says_what_flags_say_and_flags_win(capsys, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "methods: [simclr]\nseeds: [1, 2]\nepochs: 7\nlr: 0.5\n"
        "batch-size: 64\nset: {simclr: {temperature: 0.3}}\ntune: true\n"
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--config", str(path), "--lr", "0.002"])
    args = complete(given, add_arguments, DEFAULTS)
    settings = [s for s in all_settings(args) if s.method == "simclr"]
    assert [s.seed for s in settings] == [1, 2]
    assert {(s.epochs, s.lr, s.batch_size) for s in settings} == {(7, 0.002, 64)}
    assert settings[0].options == {"temperature": 0.3} and args.tune is True
    path.write_text("epoch: 3\n")
    assert "did you mean epochs?" in error_line(capsys, "--config", str(path))
    path.write_text("epochs: many\n")
    assert "invalid int value: 'many'" in error_line(capsys, "--config", str(path))


def test_a_flag_that_is_given_twice_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "--lr", "1", "--lr", "2"])
    assert caught.value.code == 2 and "--lr is given twice" in capsys.readouterr().err


def test_more_threads_than_cores_are_as_many_as_there_are_cores(capsys):
    args = argparse.Namespace(**{**DEFAULTS, "threads": 100_000, "accelerator": "cpu"})
    assert machine(args).threads == os.cpu_count()
    assert "--threads 100000 is more than the" in capsys.readouterr().err


def test_an_unwritable_folder_is_answered_in_one_line(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot write to" in error_line(capsys, "--out", str(blocked / "out"))


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_a_package_that_is_missing_is_named_before_anything_is_trained(
    command, capsys, tmp_path, monkeypatch
):
    known = runs.find_spec
    monkeypatch.setattr(runs, "find_spec", lambda name: None if name == "plotly" else known(name))
    said = error_line(capsys, "--out", str(tmp_path / "out"), command=command)
    assert "plotly missing: pip install 'hsplugin[compare]'" in said
    assert not (tmp_path / "out").exists()


def test_two_comparisons_do_not_share_a_folder(capsys, tmp_path):
    with locked(tmp_path):
        assert "wait for it" in error_line(capsys, "--out", str(tmp_path))
    assert not (tmp_path / "runs").exists()
