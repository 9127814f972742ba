"""Each recipe runs in its small setting and learns something; its defaults are as published."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

from tests.examples import scripts


def last_percentage(printed: str) -> float:
    return float(re.findall(r"([\d.]+) ?%", printed)[-1])


def losses(printed: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss (-?[\d.]+)", printed)]


@pytest.mark.slow
def test_the_stl10_recipe_runs_small_and_its_probe_beats_chance(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.pt"
    printed = scripts.run(
        "stl10", "--small", "--limit", 512, "--width", 0.0625, "--batch-size", 64,
        "--epochs", 2, "--probe-epochs", 20, "--out", weights,
    )  # fmt: skip
    first, second = losses(printed)
    assert second < first
    assert last_percentage(printed) > 25
    assert weights.exists()


@pytest.mark.slow
def test_the_stl10_recipe_takes_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for label, colour in enumerate(["red", "green"]):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (80, 72), colour).save(folder / f"{number}.png")
    printed = scripts.run(
        "stl10", "--small", "--data", tmp_path, "--classes", 2, "--width", 0.03,
        "--batch-size", 8, "--epochs", 1, "--probe-epochs", 1,
    )  # fmt: skip
    assert "linear probe on fc7" in printed


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--no-intra-batch"]])
def test_the_moco_recipe_runs_small_and_its_features_know_digits(form: list[str]) -> None:
    printed = scripts.run(
        "moco_align_uniform", "--small", "--limit", 256, "--batch-size", 64, "--queue", 128,
        "--epochs", 2, *form,
    )  # fmt: skip
    assert len(losses(printed)) == 2
    assert last_percentage(printed) > 25


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["align_uniform", "ntxent"])
def test_lightlys_recipe_runs_small_with_either_loss(loss: str) -> None:
    printed = scripts.run(
        "lightly_simclr", "--small", "--limit", 256, "--batch-size", 64, "--loss", loss
    )
    assert len(losses(printed)) == 2
    assert last_percentage(printed) > 25


@pytest.mark.slow
def test_the_plain_loop_learns_with_either_loss() -> None:
    printed = scripts.run("pytorch_plain", "--epochs", 2)
    accuracies = [float(value) for value in re.findall(r"accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == 2 and min(accuracies) > 60


@pytest.mark.slow
def test_features_on_the_circle_are_drawn_for_all_four_encoders(tmp_path: Path) -> None:
    picture = tmp_path / "circle.png"
    printed = scripts.run(
        "features_on_circle", "--train-size", 256, "--epochs", 2, "--out", picture
    )
    rows = {line[:16].strip(): line[16:].split() for line in printed.splitlines()[2:6]}
    assert set(rows) == {"random", "supervised", "contrastive", "align + uniform"}
    for alignment, uniformity, linear, _ in rows.values():
        assert 0 <= float(alignment) <= 4 and -8 <= float(uniformity) <= 0
        assert 5 < float(linear) <= 100
    assert picture.stat().st_size > 50_000


class StartedError(Exception):
    """Raised where a recipe would train, with the settings that it would train with."""


@pytest.mark.parametrize(
    ("name", "arguments", "published"),
    [
        (
            "stl10",
            [],
            {
                "data": "stl10", "dim": 128, "batch_size": 768, "epochs": 200, "lr": 0.12,
                "decay_at": [155, 170, 185], "probe_epochs": 100, "probe_decay_at": [60, 80],
                "align_weight": 1.0, "uniform_weight": 1.0, "align_alpha": 2.0, "uniform_t": 2.0,
            },
        ),
        (
            "moco_align_uniform",
            ["--data", "imagenet-100"],
            {
                "backbone": "resnet50", "input_size": 224, "dim": 128, "queue": 65536,
                "momentum": 0.999, "batch_size": 128, "epochs": 200, "lr": 0.03,
                "align_weight": 3.0, "uniform_weight": 1.0, "align_alpha": 2.0, "uniform_t": 3.0,
            },
        ),
    ],
)  # fmt: skip
def test_the_defaults_are_the_published_settings(
    name: str, arguments: list[str], published: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(scripts.EXAMPLES)
    example = scripts.load(name)

    def start(args: argparse.Namespace, device: str) -> None:
        raise StartedError(args)

    monkeypatch.setattr(example, "train", start)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(StartedError) as started:
        example.main()
    settings = vars(started.value.args[0])
    assert {key: settings[key] for key in published} == published
