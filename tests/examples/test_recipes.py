"""Each recipe runs in its small setting and learns; its defaults are the published settings."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

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


def test_the_plain_loop_takes_any_criterion_of_two_views() -> None:
    example = scripts.load("pytorch_plain")
    seen = []

    def criterion(z_a: Tensor, z_b: Tensor) -> Tensor:
        seen.append((z_a, z_b))
        return (z_a - z_b).square().mean()

    args = argparse.Namespace(epochs=1, batch_size=700, dim=6, lr=1e-3, seed=0)
    example.train(criterion, args)
    assert len(seen) == 2
    for z_a, z_b in seen:
        assert z_a.shape == z_b.shape == (700, 6)
        assert z_a.requires_grad and z_b.requires_grad and not torch.equal(z_a, z_b)


def test_the_stl10_defaults_are_the_published_settings() -> None:
    args = scripts.load("stl10").parse([])
    assert (args.align_weight, args.align_alpha) == (1, 2)
    assert (args.uniform_weight, args.uniform_t) == (1, 2)
    assert (args.dim, args.batch_size, args.width) == (128, 768, 1)
    assert (args.epochs, args.lr, args.decay_at) == (200, 0.12, [155, 170, 185])
    assert (args.probe_epochs, args.probe_decay_at) == (100, [60, 80])


def test_the_moco_defaults_are_the_published_settings() -> None:
    args = scripts.load("moco_align_uniform").parse(["--data", "IMAGENET-100"])
    assert (args.align_weight, args.align_alpha) == (3, 2)
    assert (args.uniform_weight, args.uniform_t) == (1, 3)
    assert (args.backbone, args.input_size, args.dim) == ("resnet50", 224, 128)
    assert (args.queue, args.momentum, args.groups) == (65536, 0.999, 4)
    assert (args.batch_size, args.epochs, args.lr) == (128, 200, 0.03)
    assert not args.no_intra_batch
