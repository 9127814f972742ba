"""The runs of a comparison in real trackers: the same results, one log a run, no epoch twice."""

from __future__ import annotations

import csv
import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hsplugin.lab import log, train
from hsplugin.lab.methods import UNTRAINED
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings
from tests.compare.running import CLOCK, error_line

SMALL = {"train_size": 120, "epochs": 3, "batch_size": 40, "labels_per_class": 3, "validations": 2}
SETTINGS = [RunSettings(UNTRAINED, **SMALL), RunSettings("simclr", **SMALL)]
MACHINE = Machine(threads=1, accelerator="cpu")
Points = dict[str, list[tuple[int, float]]]


def read_csv(out: Path, run: Run) -> Points:
    points: Points = {}
    with (run.log / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    points.setdefault(name, []).append((int(row["step"]), float(value)))
    return points


def read_tensorboard(out: Path, run: Run) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.log))
    read.Reload()
    assert read.Tags()["images"] == ["geometry/val_figure"]
    return {n: [(e.step, e.value) for e in read.Scalars(n)] for n in read.Tags()["scalars"]}


def read_mlflow(out: Path, run: Run) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{out / 'logs' / 'mlruns'}")
    experiment = client.get_experiment_by_name(out.name)
    assert experiment is not None
    (there,) = (
        r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == run.name
    )
    assert there.info.status == "FINISHED" and there.data.params["batch_size"] == "40"
    assert client.list_artifacts(there.info.run_id, "geometry/val_figure")
    names = there.data.metrics
    return {
        n: [(m.step, m.value) for m in client.get_metric_history(there.info.run_id, n)]
        for n in names
    }


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB after W&B's seven bytes."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, the last part of one
            yield parts
            parts = b""


def read_wandb(out: Path, run: Run) -> Points:
    from wandb.proto import wandb_internal_pb2

    points: Points = {}
    identity = json.loads(run.log_state.read_text())["id"]
    # A run that goes on within a second of its start gets a folder with one more number.
    for path in sorted(out.glob(f"logs/wandb/*-{identity}*/*.wandb"), key=lambda p: p.parent.name):
        held: list[Any] = []
        deadline = time.monotonic() + 60
        # W&B's own process may still write when the run has finished.
        while not any(record.HasField("exit") for record in held) and time.monotonic() < deadline:
            time.sleep(0.1)
            held = [
                wandb_internal_pb2.Record.FromString(data) for data in records(path.read_bytes())
            ]
        for record in held:
            items = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            for name, value in items.items():
                if isinstance(value, int | float) and not name.startswith("_"):
                    step = int(items["trainer/global_step"])
                    points.setdefault(name, []).append((step, value))
    return points


READERS: dict[str, Callable[[Path, Run], Points]] = {
    "csv": read_csv,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # MLflow writes where it logs to into the environment; undone at the end.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def run_both(out: Path, machine: Machine) -> list[Any]:
    """Do both runs here, where the environment is the test's; what the user was told of."""
    notes: list[Any] = []
    for settings in SETTINGS:
        train.train(settings, machine, Run.of(settings, out), notes.append)
    return [note for note in notes if "note" in note]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run_both(out, MACHINE) == []
    return out


def assert_logged(points: Points, run: Run) -> None:
    """What the tracker holds is the run's history and result, each value once."""
    result = run.read_result()
    rows = {round(row["epoch"]): row for row in result["history"]}
    last = result["epochs"] if result["method"] != UNTRAINED else 0
    steps = {epoch: 3 * epoch for epoch in range(last + 1)}  # 120 images are 3 batches
    assert points["epoch"] == [(steps[e], e) for e in range(last + 1)]
    for name in ("alignment", "uniformity"):
        expected = [(steps[e], row[name]) for e, row in rows.items()]
        assert points[f"geometry/val_{name}"] == [(s, pytest.approx(v)) for s, v in expected]
    gaps = [value for _, value in points["geometry/val_uniformity_gap"]]
    optimum = result["uniformity_optimum"]
    assert gaps == [pytest.approx(row["uniformity"] - optimum, abs=1e-5) for row in rows.values()]
    assert [step for step, _ in points.get("loss", [])] == list(steps.values())[1:]
    assert all(math.isfinite(value) for _, value in points.get("loss", []))
    assert points["linear"] == [(steps[last], pytest.approx(result["linear"]))]
    assert {f"geometry/val_{n}" for n in ("rankme", "wasserstein_uniformity", "knn")} <= set(points)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_tracker_holds_every_run_and_changes_none(kind: str, plain: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run_both(out, replace(MACHINE, logger=kind)) == []
    for settings in SETTINGS:
        run, other = Run.of(settings, out), Run.of(settings, plain)
        assert_logged(READERS[kind](out, run), run)
        same = set(run.read_result()) - CLOCK - {"history"}
        ours, theirs = run.read_result(), other.read_result()
        assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}
        weights, expected = (torch.load(r.encoder)["last"]["backbone"] for r in (run, other))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


class Stopped(BaseException):
    """Ends a training as a kill would: no handler of the library may take it for an error."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_run_that_is_stopped_and_resumed_logs_no_epoch_twice(kind: str, tmp_path: Path):
    out = tmp_path / "out"
    run, machine = Run.of(SETTINGS[1], out), replace(MACHINE, logger=kind, devices=1)

    def stop(progress: dict[str, Any]) -> None:
        assert "note" not in progress, progress
        if progress["epoch"] == 2:
            # The epoch is logged; without its checkpoint it is trained again.
            run.checkpoint.unlink()
            raise Stopped

    with pytest.raises(Stopped):
        train.train(SETTINGS[1], machine, run, stop)
    notes: list[dict[str, Any]] = []
    train.train(SETTINGS[1], machine, run, notes.append)
    assert not [note for note in notes if "note" in note]
    assert_logged(READERS[kind](out, run), run)


@pytest.mark.slow
def test_a_tracker_that_fails_leaves_the_run_and_is_told_once(tmp_path: Path):
    run = Run.of(SETTINGS[1], tmp_path / "out")
    run.folder.mkdir(parents=True)
    run.log.write_text("a file where the log's folder should be")
    notes: list[dict[str, Any]] = []
    train.train(SETTINGS[1], replace(MACHINE, logger="csv"), run, notes.append)
    (note,) = (event["note"] for event in notes if "note" in event)
    assert note.startswith("--logger csv failed, going on without it: ")
    assert run.finished


@pytest.mark.parametrize(
    ("environment", "package", "flags", "said"),
    [
        ({}, "tensorboard", ["--logger", "tensorboard"], "pip install tensorboard"),
        ({"WANDB_MODE": "online"}, None, ["--logger", "wandb"], "wandb login"),
        ({}, None, ["--logger", "csv", "--framework", "solo"], "by its own config"),
    ],
)
def test_a_logger_that_cannot_start_is_refused_before_anything_starts(
    environment, package, flags, said, capsys, tmp_path, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    found = log.find_spec
    monkeypatch.setattr(log, "find_spec", lambda name: None if name == package else found(name))
    if "solo" in flags:
        flags = [*flags, "--solo-checkout", str(tmp_path)]
    assert said in error_line(capsys, *flags, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
