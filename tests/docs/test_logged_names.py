"""The names on the page of logged names are those that trackers get, and no others."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

import hsplugin
from hsplugin.lab import train
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

pl = pytest.importorskip("pytorch_lightning")

PAGE = Path(__file__).parents[2] / "examples" / "docs" / "logged-names.md"


def names_under(heading: str) -> set[str]:
    """The names in the first column of the first table under a heading."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


class Model(pl.LightningModule):
    """Two views of four features through a linear head, and a criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = torch.nn.Linear(4, 3)
        self.criterion = hsplugin.AlignUniformLoss()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y, _ = batch
        return self.criterion(self.projection_head(x), self.projection_head(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_monitor_logs_these_names(tmp_path: Path) -> None:
    views = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(*views, torch.arange(16) % 2)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[hsplugin.GeometryMonitor(strict=True)],
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=8))
    assert set(trainer.logged_metrics) == names_under("The monitor")


@pytest.mark.slow
def test_a_run_of_compare_logs_these_names(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    small = {"train_size": 120, "epochs": 1, "batch_size": 40, "labels_per_class": 3}
    settings = RunSettings("simclr", validations=1, **small)
    run = Run.of(settings, tmp_path / "out")
    train.train(settings, Machine(threads=1, accelerator="cpu", logger="csv"), run, print)
    with (run.log / "metrics.csv").open(newline="") as file:
        logged = set(next(csv.reader(file))) - {"step"}
    assert logged == names_under("Trackers of `hsplugin compare` and `hsplugin sweep`")
