"""Train on four pairs, so many a process, and save the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.sentence_transformers.columns import pairs, trainer


def train(source: str, saved: Path, batch_size: int) -> None:
    """Three steps of the loss that gathers, from the model in a folder."""
    from hsplugin_sentence_transformers import AlignUniformLoss
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(source, device="cpu")
    training = trainer(
        model,
        AlignUniformLoss(model, gather_across_devices=True),
        saved.parent,
        {name: texts[:4] for name, texts in pairs().items()},
        max_steps=3,
        optim="sgd",
        per_device_train_batch_size=batch_size,
        ddp_find_unused_parameters=True,  # BERT's pooler
    )
    training.train()
    if training.is_world_process_zero():
        torch.save(model.state_dict(), saved)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
