"""Training by a Lightning Trainer on two processes against the same training on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hsplugin

lightning = pytest.importorskip("pytorch_lightning")


class Training(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        self.loss = hsplugin.AlignUniformLoss(gather_distributed=True)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(*torch.randn(2, 24, 6, generator=generator, dtype=torch.float64))
        batches = torch.arange(24).split(8)
        if self.trainer.world_size == 2:  # uneven: one rank has the first five of each batch
            first = self.trainer.global_rank == 0
            batches = [batch[:5] if first else batch[5:] for batch in batches]
        return DataLoader(data, batch_sampler=[batch.tolist() for batch in batches])

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        loss = self.loss(self.model(batch[0]), self.model(batch[1]))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def fit(processes: int, folder: Path) -> tuple[float, list[Tensor]]:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Training()
    trainer.fit(module)
    return float(trainer.callback_metrics["loss"]), [p.detach() for p in module.parameters()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("master_port")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    loss, weights = fit(2, tmp_path)
    expected_loss, expected_weights = fit(1, tmp_path)
    untrained = [p.detach() for p in Training().parameters()]
    assert (untrained[0] - weights[0]).abs().max() > 1e-3
    assert abs(loss - expected_loss) < 1e-9
    for weight, expected in zip(weights, expected_weights, strict=True):
        assert (weight - expected).abs().max() < 1e-9
