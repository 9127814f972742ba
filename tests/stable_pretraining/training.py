"""Two views of random images, a small module, and training as stable-pretraining does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Views(torch.utils.data.Dataset):
    """Samples as ``MultiViewTransform`` makes them: views in a list, named views, or one image."""

    def __init__(self, form: str, samples: int = 12, views: int = 2) -> None:
        self.form = form
        images = torch.randn(samples, views, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        self.images = images[:, :1] + 0.3 * images
        self.labels = torch.arange(samples) % 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        views = [{"image": image, "label": self.labels[index]} for image in self.images[index]]
        if self.form == "image":
            return views[0]
        if self.form == "named":
            return {f"view_{number}": view for number, view in enumerate(views)}
        return {"views": views}


def loader(form: str = "list", **settings: int) -> DataLoader:
    """All samples as one batch, in order."""
    return DataLoader(Views(form, **settings), batch_size=len(Views(form, **settings)))


def parts() -> dict[str, nn.Module]:
    """A backbone to 8 dimensions, whatever the image's size, and a projector to 5."""
    torch.manual_seed(0)
    layers = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.Tanh()]
    return {"backbone": nn.Sequential(*layers), "projector": nn.Linear(8, 5)}


def embeddings(module: Any, head: bool = False) -> list[Tensor]:
    """What the module makes of each view, in float64."""
    views = Views("list").images.unbind(1)
    with torch.no_grad():
        found = [module.backbone(view) for view in views]
        found = [module.projector(embedding) for embedding in found] if head else found
    return [nn.functional.normalize(embedding.double(), dim=1) for embedding in found]


def fit(
    module: Any,
    folder: Path,
    *callbacks: Any,
    lr: float = 0.1,
    train: DataLoader | None = None,
    val: DataLoader | None = None,
) -> Any:
    """Train three epochs of one batch by stable-pretraining's Manager and return the trainer."""
    import lightning.pytorch as pl
    import stable_pretraining as spt

    module.optim = {
        "optimizer": {"type": "SGD", "lr": lr},
        "scheduler": {"type": "ConstantLR", "factor": 1.0},
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    data = spt.data.DataModule(train=train or loader(), val=val or loader("image"))
    spt.Manager(trainer=trainer, module=module, data=data)()
    return trainer
