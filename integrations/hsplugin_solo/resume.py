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
    """Mixin for solo-learn's methods: keep what its checkpoints lose.

    Those hold neither the random state, so that a resumed run sees other shuffles and crops, nor
    the momentum coefficient tau, which starts anew. With both restored, training resumed from an
    epoch's checkpoint equals the uninterrupted one, to the bit on one CPU. The state is the main
    process's (rank 0 under DDP), the CPU's only: torch, numpy and random.
    """

    _random_state: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the random state, as types that ``torch.load(weights_only=True)`` takes."""
        super().on_save_checkpoint(checkpoint)
        name, keys, *rest = cast(Any, np.random.get_state())
        checkpoint[_KEY] = {
            "epoch": self.trainer.current_epoch,
            "torch": torch.get_rng_state(),
            "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), *rest),
            "random": random.getstate(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the random state until training goes on; a plain load must not change it."""
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
        # What the method draws for an epoch, as DeepCluster does, follows the state restored.
        super().on_train_epoch_start()
        loop = self.trainer.fit_loop
        if resumed and getattr(loop, "is_resuming", False):
            # Lightning 2.6 began this epoch's iterator, and drew its seed, before this hook.
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
