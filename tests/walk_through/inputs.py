"""Make the small files that the commands of the documentation are given, in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import yaml
from PIL import Image

ROWS, DIM = 240, 16
# Stands for a user's own script, which knows nothing of hsplugin.
SIMCLR = """
import pytorch_lightning, torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead

class SimCLR(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 32))
        self.projection_head = SimCLRProjectionHead(32, 32, 16)
        self.criterion = NTXentLoss()

    def training_step(self, batch, index):
        z = [self.projection_head(self.backbone(view)) for view in batch]
        return self.criterion(*z)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)

images = [tuple(torch.rand(2, 3, 4, 4)) for _ in range(256)]
trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
trainer.fit(SimCLR(), torch.utils.data.DataLoader(images, batch_size=16))
print({name: float(value) for name, value in trainer.callback_metrics.items()})
"""


def main(folder: Path) -> None:
    """Write them all."""
    generator = np.random.default_rng(0)
    labels = np.arange(ROWS) % 6
    centres = generator.normal(size=(6, DIM))

    def features() -> np.ndarray:
        noise = np.random.default_rng(1).normal(size=(ROWS, DIM))
        return (centres[labels] + noise + 0.3 * generator.normal(size=(ROWS, DIM))).astype("f4")

    folder.mkdir(parents=True)
    for name in ("view1", "view2", "encoder1", "encoder2", "encoder3", "users", "items"):
        np.save(folder / f"{name}.npy", features())
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "clip.npz", image_embeds=features(), text_embeds=features())
    columns = {f"dim{i}": column for i, column in enumerate(features().T)}
    pd.DataFrame(columns).to_csv(folder / "embeddings.csv", index=False)
    clicks = generator.integers(0, ROWS, size=(300, 2))
    pd.DataFrame(clicks, columns=["user", "item"]).to_csv(folder / "clicks.csv", index=False)
    scores = generator.uniform(0, 5, ROWS)
    sts = {"a": [*features()], "b": [*features()], "score": scores}
    pd.DataFrame(sts).to_parquet(folder / "sts.parquet")
    with h5py.File(folder / "embeddings.h5", "w") as file:
        file["features"] = features()
    (folder / "two.yaml").write_text(yaml.safe_dump({"method": ["simclr"], "dim": [8, 16]}))
    (folder / "simclr.py").write_text(SIMCLR)
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for label in range(6):
            classes = folder / "photos" / split / str(label)
            classes.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(classes / f"{number}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
