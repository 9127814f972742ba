from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

lightning = pytest.importorskip("lightning.pytorch")

from hsplugin_solo.resume import ExactResume  # noqa: E402


class Noisy(torch.utils.data.Dataset):
    """Samples that depend on each of the three random states."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(4) + random.random() + float(np.random.rand()) + index


class Plain(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.seen: list[float] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.seen.append(float(batch.sum()))
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Resumable(ExactResume, Plain):
    pass


class SaveEachEpoch(lightning.Callback):  # type: ignore[misc]
    """When solo-learn's Checkpointer saves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(model: Any, folder: Path, seed: int, validate: bool, workers: int, **more: Any) -> Any:
    lightning.seed_everything(seed)
    options = {"batch_size": 4, "num_workers": workers}
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[SaveEachEpoch(folder)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        torch.utils.data.DataLoader(Noisy(), shuffle=True, **options),
        torch.utils.data.DataLoader(Noisy(), **options) if validate else None,
        **more,
    )
    return model


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("validate", [True, False], ids=["validated", "unvalidated"])
def test_a_resumed_run_sees_the_same_batches_and_ends_with_the_same_weights(
    tmp_path: Path, validate: bool, workers: int
) -> None:
    folders = [tmp_path / "whole", tmp_path / "resumed"]
    for folder in folders:
        folder.mkdir()
    whole = fit(Resumable(), folders[0], 1, validate, workers)
    for epoch in (0, 1):
        checkpoint = str(folders[0] / f"{epoch}.ckpt")
        resumed = fit(Resumable(), folders[1], 2, validate, workers, ckpt_path=checkpoint)
        assert resumed.seen == whole.seen[3 * (epoch + 1) :]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_without_it_a_resumed_run_sees_other_batches(tmp_path: Path) -> None:
    whole = fit(Plain(), tmp_path, 1, True, 0)
    resumed = fit(Plain(), tmp_path, 2, True, 0, ckpt_path=str(tmp_path / "0.ckpt"))
    assert resumed.seen != whole.seen[3:]


def test_loading_a_checkpoint_without_training_leaves_the_random_state(tmp_path: Path) -> None:
    fit(Resumable(), tmp_path, 1, False, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    saved = torch.load(tmp_path / "0.ckpt", weights_only=True)
    Resumable().on_load_checkpoint(saved)
    model = torch.nn.Linear(4, 1)  # draws, as any other module would have
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before) and model is not None


def test_tau_goes_on_where_it_was() -> None:
    class Updater:
        tau = 0.9

        def update_tau(self, cur_step: int, max_steps: int) -> None:
            self.tau = cur_step / max_steps

    model = Resumable()
    model.momentum_updater = Updater()
    model._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=8)
    model.on_train_start()
    assert model.momentum_updater.tau == 0.9
    model._trainer.global_step = 6
    model.on_train_start()
    assert (model.momentum_updater.tau, model.last_step) == (0.75, 6)
