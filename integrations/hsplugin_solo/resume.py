"""A checkpoint at the end of an epoch from which a run goes on as if never interrupted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object

_KEY = "hsplugin_random_state"


class ExactResume(_Base):
    """Mixin for solo-learn's methods: save the state that its checkpoints lose.

    They lack the random state, so a resumed run sees other shuffles and crops, and the momentum
    coefficient tau, which restarts. With both restored, training resumed from an epoch's checkpoint
    equals uninterrupted training, bit for bit on one CPU. Only the main process's CPU state is
    saved (rank 0 under DDP): torch, numpy and random.
    """

    _random_state: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the random state, as types that ``torch.load(weights_only=True)`` accepts."""
        super().on_save_checkpoint(checkpoint)
        name, keys, *rest = cast(Any, np.random.get_state())
        checkpoint[_KEY] = {
            "epoch": self.trainer.current_epoch,
            "torch": torch.get_rng_state(),
            "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), *rest),
            "random": random.getstate(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state until training resumes; loading alone must not change it."""
        super().on_load_checkpoint(checkpoint)
        self._random_state = checkpoint.get(_KEY)

    def on_train_epoch_start(self) -> None:
        """Restore the random state at the start of the epoch that follows the checkpoint's."""
        state = self._random_state
        resumed = state is not None and self.trainer.current_epoch > state["epoch"]
        if state is not None and resumed:
            self._random_state = None
            torch.set_rng_state(state["torch"])
            name, keys, *rest = state["numpy"]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
            random.setstate(state["random"])
        # After restoring, because some methods (DeepCluster) draw random numbers here.
        super().on_train_epoch_start()
        loop = self.trainer.fit_loop
        if resumed and getattr(loop, "is_resuming", False):
            # Lightning 2.6 has created this epoch's iterator, and drawn its seed, before this hook.
            iter(loop._data_fetcher)

    def on_train_start(self) -> None:
        """Restore tau, which solo-learn keeps in a plain attribute."""
        super().on_train_start()
        updater = getattr(self, "momentum_updater", None)
        if updater is not None and self.trainer.global_step > 0:
            updater.update_tau(
                cur_step=self.trainer.global_step,
                max_steps=self.trainer.estimated_stepping_batches,
            )
            self.last_step = self.trainer.global_step
