"""Train a forward function of stable-pretraining with alignment and uniformity, and watch it.

    pip install 'hsplugin[stable-pretraining]'   # in an environment of its own
    python examples/spt_digits.py

Two views of scikit-learn's digits, one shifted and one brightened; nothing is downloaded. Prints
the geometry of the backbone's and the projector's features, in training and validation, beside the
accuracy of stable-pretraining's own nearest neighbours.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import lightning.pytorch as pl
import stable_pretraining as spt
import torch
from hsplugin_stable_pretraining import GeometryMonitor, align_uniform
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from hsplugin import AlignUniformLoss


def augment(image: Tensor) -> Tensor:
    """Shift by up to one pixel, change the brightness, add noise."""
    shifts = torch.randint(-1, 2, (2,)).tolist()
    shifted = torch.roll(image, shifts, dims=(1, 2)) * torch.empty(1).uniform_(0.6, 1.4)
    return shifted + 0.1 * torch.randn_like(image)


class Digits(Dataset[dict[str, Any]]):
    """Digits of 8 x 8 pixels, as two views or, for validation, as they are."""

    def __init__(self, train: bool) -> None:
        data = load_digits()
        part = slice(0, 1400) if train else slice(1400, None)
        self.images = torch.tensor(data.images[part] / 16, dtype=torch.float32)[:, None]
        self.labels = data.target[part]
        self.train = train

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index], int(self.labels[index])
        if not self.train:
            return {"image": image, "label": label}
        return {"views": [{"image": augment(image), "label": label} for _ in range(2)]}


def main() -> None:
    """Train, and print what was logged last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()

    module = spt.Module(
        forward=align_uniform,
        backbone=nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 128),
        ),
        projector=nn.Sequential(nn.ReLU(), nn.Linear(128, 32)),
        align_uniform_loss=AlignUniformLoss(),
        optim={"optimizer": {"type": "AdamW", "lr": 1e-3}},
    )
    with tempfile.TemporaryDirectory() as folder:
        spt.set(cache_dir=folder)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=args.epochs,
            callbacks=[
                GeometryMonitor("backbone", input="embedding", every_n_steps=1),
                GeometryMonitor("projector", input="projection", every_n_steps=1),
                spt.callbacks.OnlineKNN(
                    name="knn",
                    input="embedding",
                    target="label",
                    queue_length=2800,
                    metrics={"accuracy": MulticlassAccuracy(10)},
                    input_dim=128,
                    num_classes=10,
                    distance_metric="cosine",
                ),
            ],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        data = spt.data.DataModule(
            train=DataLoader(Digits(train=True), batch_size=200, shuffle=True, drop_last=True),
            val=DataLoader(Digits(train=False), batch_size=200),
        )
        spt.Manager(trainer=trainer, module=module, data=data, seed=0)()
    print("last epoch:")
    for name, value in sorted(trainer.callback_metrics.items()):
        if name.startswith(("backbone/", "projector/", "eval/")) and not name.endswith("_step"):
            print(f"{name:<36}{float(value):>9.3f}")


if __name__ == "__main__":
    main()
