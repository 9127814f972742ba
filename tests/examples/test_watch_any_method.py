"""A script that knows nothing of the monitor is watched without a change to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples import scripts

pytest.importorskip("pytorch_lightning")
pytest.importorskip("torchvision")

SCRIPT = """
import pytorch_lightning as pl
import torch
import torchvision


class Method(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 8))
        self.{criterion} = torch.nn.CosineSimilarity()

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return -self.{criterion}(self.encoder(x), self.encoder(x.flip(-1))).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


transform = torchvision.transforms.ToTensor()
data = torchvision.datasets.CIFAR10("nowhere", download=True, transform=transform)
loader = torch.utils.data.DataLoader(data, batch_size=512, num_workers=8)
trainer = pl.Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(Method(), loader)
"""


def watch(folder: Path, criterion: str, *options: object) -> str:
    script = folder / "method.py"
    script.write_text(SCRIPT.replace("{criterion}", criterion))
    settings = ("--epochs", 2, "--batch-size", 8, "--random-images", 32, "--out", folder)
    return scripts.run("watch_any_method", script, *settings, *options)


@pytest.mark.slow
def test_values_are_printed_and_drawn_each_epoch(tmp_path: Path) -> None:
    printed = watch(tmp_path, "criterion")
    lines = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all("alignment 0." in line and "uniformity -" in line for line in lines)
    drawn = sorted(path.name for path in (tmp_path / "geometry").iterdir())
    assert drawn == ["epoch-0000-step-00000004.png", "epoch-0001-step-00000008.png"]


@pytest.mark.slow
def test_a_module_is_found_or_chosen_where_no_criterion_has_features(tmp_path: Path) -> None:
    assert "epoch 1: alignment" in watch(tmp_path, "similar")
    assert "epoch 1: alignment" in watch(tmp_path, "similar", "--module", "encoder")
