"""A small module like those of Lightly's recipes, and data for it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hsplugin

CLASSES = 3


class Recipe(pytorch_lightning.LightningModule):
    """Two noisy views, batch norm and dropout, so that any disturbance shows in the weights."""

    def __init__(self, dim: int = 6, criterion: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(
            nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)
        )
        self.projection_head = nn.Linear(16, dim)
        self.criterion = hsplugin.AlignUniformLoss() if criterion is None else criterion
        self.seen: list[tuple[int, int, Tensor, Tensor]] = []
        self.validated: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x))

    def views(self, batch: Any) -> tuple[Tensor, Tensor]:
        x = batch[0]
        return self(x + 0.1 * torch.randn_like(x)), self(x + 0.1 * torch.randn_like(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z_a, z_b = self.views(batch)
        copies = z_a.detach().clone(), z_b.detach().clone()
        self.seen.append((self.current_epoch, batch_idx, *copies))
        return self.criterion(z_a, z_b)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class Validated(Recipe):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        z_a, z_b = self(batch[0]), self(batch[0] * 1.1)
        if not self.trainer.sanity_checking:
            self.validated.append((z_a.clone(), z_b.clone()))
        self.criterion(z_a, z_b)


def loader(rows: int = 60, batch: int = 12, seed: int = 0, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, 10, generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return DataLoader(TensorDataset(data, labels), batch_size=batch, **options)


def fit(
    module: Any,
    callbacks: list[Any],
    *,
    train: Any = None,
    validation: Any = None,
    ckpt_path: Any = None,
    **options: Any,
) -> pytorch_lightning.Trainer:
    """Train on the CPU without leaving anything behind."""
    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        **options,
    }
    trainer = pytorch_lightning.Trainer(callbacks=callbacks, **settings)
    trainer.fit(module, loader() if train is None else train, validation, ckpt_path=ckpt_path)
    return trainer
