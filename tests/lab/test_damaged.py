"""Folders that others can write to: planted code never runs, damaged files end in one line."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hsplugin.errors import CommandError
from hsplugin.lab import train
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings
from tests.compare.running import CLOCK

SETTINGS = RunSettings("moco", train_size=120, epochs=3, batch_size=40, labels_per_class=3)
MACHINE = Machine(threads=1, accelerator="cpu")


class Planted:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class StopRun(Exception):  # noqa: N818
    """Ends a run after its first checkpoint."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run that was stopped after a checkpoint, and its result without a stop."""
    whole = Run.of(SETTINGS, tmp_path_factory.mktemp("whole"))
    train.train(SETTINGS, MACHINE, whole, lambda event: None)
    run = Run.of(SETTINGS, tmp_path_factory.mktemp("stopped"))

    def stop(event: dict[str, Any]) -> None:
        if event["epoch"] == 2:
            raise StopRun

    with pytest.raises(StopRun):
        train.train(SETTINGS, MACHINE, run, stop)
    return run.folder, whole.read_result()


def resumed(folder: Path) -> tuple[dict[str, Any], list[int], list[str]]:
    """The result of a run that goes on, the epochs that it trained, and what it said."""
    events: list[dict[str, Any]] = []
    run = Run(folder)
    train.train(SETTINGS, MACHINE, run, events.append)
    epochs = [event["epoch"] for event in events if "epoch" in event]
    return run.read_result(), epochs, [event["note"] for event in events if "note" in event]


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def kept(result: dict[str, Any]) -> str:
        result = {k: v for k, v in copy.deepcopy(result).items() if k not in CLOCK}
        for row in result["history"]:
            del row["seconds"]
        return json.dumps(result, sort_keys=True)

    return kept(first) == kept(second)


def planted(path: Path, target: Path) -> None:
    held = {"run": SETTINGS.name, "state_dict": {}, "callbacks": {"Tracker": Planted(target)}}
    torch.save(held, path)


def other_run(path: Path, target: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "run": "moco-seed1-00000000"}, path)


def one_byte(path: Path, target: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without(name: str, value: Any = None) -> Callable[[Path, Path], object]:
    """A checkpoint of the run that lacks an entry, or has another value there."""

    def damage(path: Path, target: Path) -> None:
        content = torch.load(path, weights_only=True)
        content[name] = value
        if value is None:
            del content[name]
        torch.save(content, path)

    return damage


def without_history(path: Path, target: Path) -> None:
    content = torch.load(path, weights_only=True)
    (tracked,) = (v for k, v in content["callbacks"].items() if "Tracker" in k)
    tracked["history"] = "x"
    torch.save(content, path)


DAMAGES: list[Callable[[Path, Path], object]] = [
    planted,
    other_run,
    one_byte,
    lambda path, target: path.write_bytes(path.read_bytes()[:-1000]),
    lambda path, target: path.write_bytes(b""),
    lambda path, target: path.write_bytes(pickle.dumps(Planted(target))),
    without("loops", {}),
    without("optimizer_states", []),
    without("lr_schedulers"),
    without("criterion", 3),
    without("pytorch-lightning_version"),
    without_history,
    lambda path, target: torch.save([1], path),
    lambda path, target: torch.save({"run": SETTINGS.name, "state_dict": {}}, path),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_the_runs_own_is_set_aside_and_its_code_never_runs(
    stopped, tmp_path, damage
):
    folder, whole = stopped
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / "last.ckpt", tmp_path / "planted")
    result, epochs, notes = resumed(tmp_path / "run")
    assert not (tmp_path / "planted").exists()
    assert epochs == [1, 2, 3] and same(result, whole)
    assert len(notes) == 1 and "last.ckpt.damaged" in notes[0] and "\n" not in notes[0]
    assert (tmp_path / "run" / "last.ckpt.damaged").exists()


@pytest.mark.slow
def test_the_runs_own_checkpoint_is_resumed(stopped, tmp_path):
    folder, whole = stopped
    shutil.copytree(folder, tmp_path / "run")
    result, epochs, notes = resumed(tmp_path / "run")
    assert epochs == [3] and notes == [] and same(result, whole)


def damaged_pairs(a: torch.Tensor) -> Callable[[Run], object]:
    return lambda run: torch.save({**torch.load(run.pairs, weights_only=True), "a": a}, run.pairs)


def with_history(value: object) -> Callable[[Run], object]:
    def damage(run: Run) -> None:
        result = json.loads(run.result.read_text())
        result["history"][0]["uniformity"] = value
        run.result.write_text(json.dumps(result))

    return damage


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        damaged_pairs(torch.ones(3, 4).to_sparse()),
        damaged_pairs(torch.ones(3, 4, device="meta")),
        damaged_pairs(torch.ones(3, 4, dtype=torch.complex64)),
        with_history([]),
        with_history("x"),
        lambda run: (run.settings.unlink(), run.settings.mkdir()),
    ],
)
def test_a_file_of_an_odd_kind_ends_in_one_line_that_names_it(stopped, tmp_path, damage):
    folder, _ = stopped
    shutil.copytree(folder, tmp_path / "run")
    resumed(tmp_path / "run")
    run = Run(tmp_path / "run")
    damage(run)
    with pytest.raises(CommandError, match=str(run.folder)) as caught:
        run.read_settings()
        run.read_result()
        run.read_pairs()
    assert "\n" not in str(caught.value)
