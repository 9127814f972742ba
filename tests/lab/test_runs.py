"""Runs in processes of their own: failures, determinism, several devices, the lock."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

from hsplugin.lab import runs
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings
from tests.compare.running import CLOCK, start, table

SMALL = {"train_size": 120, "epochs": 3, "batch_size": 40, "labels_per_class": 3}
MACHINE = Machine(threads=1, accelerator="cpu")


@pytest.mark.slow
def test_runs_are_their_own_and_one_that_fails_leaves_the_others(tmp_path):
    # A queue of -1 is refused by Lightly; an unknown backbone by nobody before it is built.
    good = RunSettings("align_uniform", **SMALL)
    bad = RunSettings("moco", **SMALL, options={"queue": -1})
    events: list[tuple[str, dict[str, object]]] = []
    failures = runs.run_all(
        [bad, good, good],
        tmp_path,
        replace(MACHINE, jobs=2),
        lambda s, e: events.append((s.method, e)),
    )
    assert [failure.settings for failure in failures] == [bad]
    assert "-1" in failures[0].reason
    assert Run.of(good, tmp_path).finished and not Run.of(bad, tmp_path).finished
    assert "Traceback" in Run.of(bad, tmp_path).error_log.read_text()
    assert [e for m, e in events if m == "align_uniform"][-1] == {"done": True}

    again = tmp_path / "again"
    assert runs.run_all([good], again, MACHINE) == []
    (first,), history = runs.collect(tmp_path)
    (second,), history_again = runs.collect(again)
    same = set(first) - CLOCK
    assert {k: first[k] for k in same} == {k: second[k] for k in same}
    assert [r["loss"] for r in history[1:]] == [r["loss"] for r in history_again[1:]]


@pytest.mark.slow
def test_two_processes_share_a_run_and_measure_once(tmp_path):
    process = start(
        tmp_path / "out",
        *("--methods", "align_uniform", "--devices", "2", "--accelerator", "cpu"),
    )
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    history = table(tmp_path / "out" / "history.csv")
    assert [row["epoch"] for row in history] == ["0", "0", "1", "2", "3"]
    with (tmp_path / "out" / "results.csv").open() as file:
        facts = [json.loads(row["provenance"]) for row in csv.DictReader(file)]
    assert [one["machine"]["devices"] for one in facts] == [2, 2]


@pytest.mark.slow
def test_compiled_training_is_the_same_but_for_rounding(tmp_path):
    # Momentum networks, a queue and a projection head: all that is compiled.
    plain = RunSettings("moco", **SMALL, precision="32-true")
    compiled = replace(plain, compile=True)
    assert runs.run_all([plain, compiled], tmp_path, MACHINE) == []
    ours, expected = (Run.of(settings, tmp_path) for settings in (compiled, plain))
    losses = [[row["loss"] for row in run.read_result()["history"][1:]] for run in (ours, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    weights = [torch.load(run.encoder)["last"] for run in (ours, expected)]
    assert [list(part) for part in weights[0].values()] == [
        list(part) for part in weights[1].values()
    ]
