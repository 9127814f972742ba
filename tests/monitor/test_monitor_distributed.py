"""Two ranks report what one process with the whole batch does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("pytorch_lightning")

from hsplugin_lightly import GeometryMonitor

from tests.monitor.recipes import Recipe, fit, loader

METRICS = ("alignment", "uniformity", "wasserstein_uniformity", "rankme", "effective_rank", "nesum")


class Split(Recipe):
    """Fixed weights, and batches of twelve that two ranks split into seven and five."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__(dim)
        self.backbone[1] = torch.nn.Identity()
        self.backbone[3].p = 0.0

    def views(self, batch: Any) -> Any:
        return self(batch[0]), self(batch[0] + 0.3 * batch[0].roll(1, dims=1))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.criterion(*self.views(batch))

    def loader(self, seed: int) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        data = TensorDataset(torch.randn(48, 10, generator=generator))
        batches = torch.arange(48).split(12)
        if self.trainer.world_size == 2:
            first = self.trainer.global_rank == 0
            batches = [batch[:7] if first else batch[7:] for batch in batches]
        return DataLoader(data, batch_sampler=[batch.tolist() for batch in batches])

    def train_dataloader(self) -> DataLoader:
        return self.loader(0)

    def val_dataloader(self) -> DataLoader:
        return self.loader(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def reported(processes: int, folder: Path, dim: int) -> dict[str, float]:
    import pytorch_lightning

    monitor = GeometryMonitor(METRICS, every_n_steps=2, figures=True, strict=True)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=2,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Split(dim))
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("geometry/") and not name.endswith("_step")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("master_port")
@pytest.mark.parametrize("dim", [6, 3000])  # in the wider, spectra are of the Gram matrix
def test_two_ranks_report_what_one_process_does(dim: int, tmp_path: Path) -> None:
    one, two = (reported(n, tmp_path / name, dim) for n, name in ((1, "one"), (2, "two")))
    assert one.keys() == two.keys()
    assert {f"geometry/{stage}{name}" for stage in ("", "val_") for name in METRICS} <= one.keys()
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6)
    assert len(list((tmp_path / "two").rglob("epoch-*.png"))) == 2
    assert len(list((tmp_path / "two").rglob("val-epoch-*.png"))) == 2


class OneRankOnly(Recipe):
    """By hand, and without features on rank zero."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        seen = super().training_step if self.global_rank else lambda batch, _: self(batch[0]).sum()
        self.manual_backward(seen(batch, batch_idx))


@pytest.mark.slow
@pytest.mark.usefixtures("master_port")
def test_a_rank_without_features_keeps_no_other_waiting() -> None:
    import pytorch_lightning
    from pytorch_lightning.strategies import DDPStrategy

    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(start_method="spawn", timeout=timedelta(seconds=60)),
        max_epochs=1,
        callbacks=[GeometryMonitor(["uniformity"], every_n_steps=1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(OneRankOnly(), loader(rows=24))
    assert trainer.state.finished


def test_ranks_differ_so_that_the_equality_above_means_something() -> None:
    module = Split()
    half = [None, None]
    for rank in range(2):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(48, 10, generator=generator)[: 7 if rank == 0 else 12][7 * rank :]
        monitor = GeometryMonitor(["alignment"])
        loader = DataLoader(TensorDataset(rows), batch_size=12)
        fit(module, [monitor], train=loader, max_epochs=1, limit_val_batches=0)
        half[rank] = monitor.history[0]["alignment"]
    assert abs(half[0] - half[1]) > 1e-3
