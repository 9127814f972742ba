"""One step of a method by one process or by several; run by test_pretrain.py.

python ddp_step.py CHECKOUT METHOD PROCESSES OUT: trains the same eight images in either case, in
float64 and on a backbone without batch norm, and writes the weights that follow.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

# Before the checkout can be imported: it has a package of the same name.
from tests.solo.running import config


def main(checkout: str, method: str, processes: int, out: Path) -> None:
    sys.path.insert(0, checkout)
    from hsplugin_solo import register
    from lightning.pytorch import Trainer, seed_everything
    from solo.methods import METHODS

    register()
    seed_everything(0)
    cfg = config(method, queue_size=16, temperature=0.2)
    cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 32, "patch_size": 16}}
    cfg.optimizer.batch_size = 8 // processes
    cfg.optimizer.kwargs = {"momentum": 0.0}
    model = METHODS[method](cfg)

    crops = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64)
    data = [(i, [crops[0, i], crops[1, i]], i % 5) for i in range(8)]

    def collate(samples: list[Any]) -> list[Any]:
        indexes, views, labels = zip(*samples, strict=True)
        return [
            torch.tensor(indexes),
            [torch.stack(view) for view in zip(*views, strict=True)],
            torch.tensor(labels),
        ]

    loader = torch.utils.data.DataLoader(
        data, batch_size=8 // processes, collate_fn=collate, num_workers=0
    )
    trainer = Trainer(
        max_steps=1,
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    if trainer.is_global_zero:
        torch.save(model.state_dict(), out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
