"""The Lightning module that is trained, and the loader of its batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from hsplugin.lab.data import Images
from hsplugin.lab.encoder import Augment, backbone, float32
from hsplugin.lab.methods import options_of, recipe
from hsplugin.lab.settings import RunSettings

WARM_UP = 0.05


class Batches(Sampler[Tensor]):
    """Index batches of one epoch: this rank's share of each global batch.

    The order depends only on seed and epoch, so a resumed run sees the same batches as an
    uninterrupted one, and any number of devices sees the same global batches.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.epoch, self.rank, self.world = 0, 0, 1

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(self.images, generator=generator)
        for batch in order[: len(self) * self.batch_size].split(self.batch_size):
            yield batch[self.rank :: self.world]


class Rows(Dataset[Tensor]):
    """A data set that is indexed by whole batches of rows."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.images[rows]

    def __len__(self) -> int:
        return len(self.images)


class Learner(pl.LightningModule):  # type: ignore[misc]
    """An encoder, a projection head and a criterion, trained on two views of each image."""

    def __init__(self, settings: RunSettings, images: Images, gather: bool) -> None:
        super().__init__()
        method = recipe(settings.method)
        self.options = options_of(settings.method, settings.options, settings.shared())
        parts = {**self.options, "gather": gather}
        self.run, self.epochs, self.seed = settings.name, settings.epochs, settings.seed
        self.method = method
        self.augment = Augment(images)
        self.backbone, features = backbone(settings.backbone, images)
        self.head = method.head(features, parts)
        self.criterion = method.criterion(parts)
        self.predictor = method.predictor(parts) if method.predictor else nn.Identity()
        self.targets = nn.ModuleList()
        if method.momentum:
            self.targets.extend(copy.deepcopy(part) for part in (self.backbone, self.head))
            self.targets.requires_grad_(False)
        if settings.compile:
            # As functions, so that no module is wrapped and no weight renamed.
            self.project = torch.compile(self.project)  # type: ignore[method-assign]
            self.target = torch.compile(self.target)  # type: ignore[method-assign]

    def project(self, view: Tensor) -> Tensor:
        """Projection of one view."""
        projection: Tensor = self.head(self.backbone(view))
        return projection

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """Projection of one view by the moving average of encoder and head."""
        backbone, head = self.targets
        projection: Tensor = head(backbone(view))
        return projection

    def loss(self, *projections: Tensor, **named: Tensor) -> Tensor:
        """The criterion of projections in float32, whatever the precision of the networks."""
        with float32(self.device):
            loss: Tensor = self.criterion(
                *(x.float() for x in projections), **{k: x.float() for k, x in named.items()}
            )
        return loss

    def _move_targets(self) -> None:
        progress = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        rate = 1 - (1 - self.options["momentum"]) * (1 + math.cos(math.pi * progress)) / 2
        for ours, theirs in zip((self.backbone, self.head), self.targets, strict=True):
            update_momentum(ours, theirs, m=rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's name, and what Lightly's losses keep outside their state_dict."""
        checkpoint["run"] = self.run
        checkpoint["criterion"] = {
            name: {k: v for k, v in _hidden_state(module).items() if v is not None}
            for name, module in self.criterion.named_modules()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the losses kept."""
        for name, module in self.criterion.named_modules():
            for key, value in checkpoint["criterion"].get(name, {}).items():
                if key in _hidden_state(module):
                    setattr(module, key, value)

    def on_train_epoch_start(self) -> None:
        """Make the random numbers of an epoch depend only on seed, epoch and rank."""
        torch.manual_seed(7919 * (1_000_003 * self.seed + self.current_epoch) + self.global_rank)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of two views of one batch of uint8 images."""
        if self.targets:
            self._move_targets()
        return self.training_loss(*self.augment(batch))

    def training_loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Loss of two augmented views of one batch."""
        if self.method.step is not None:
            return self.method.step(self, a, b)
        return self.loss(self.project(a), self.project(b))

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine to zero, step by step."""
        # Lightly groups by type of module and would decay the gains of LayerScale and RMSNorm.
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.options["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.options["lr"],
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm_up = max(1, round(WARM_UP * total))
        # Its cosine reaches the end value a step early, so one more brings it to 0 at the end.
        schedule = CosineWarmupScheduler(optimizer, warm_up, total + 1, end_value=0.0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _hidden_state(module: nn.Module) -> dict[str, Tensor | None]:
    return {**dict(module.named_buffers(recurse=False)), "C": getattr(module, "C", None)}
