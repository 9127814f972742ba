"""Alignment and uniformity as solo-learn methods: SimCLR's architecture, and MoCo V2+'s.

Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from solo.methods.mocov2plus import MoCoV2Plus
from solo.methods.simclr import SimCLR
from solo.utils.misc import gather
from torch import Tensor
from torch.nn import functional as F

from hsplugin import AlignLoss, uniform_loss
from hsplugin_solo.objective import (
    OF_OTHER_METHODS,
    REQUIRED,
    ManyCropLoss,
    check_counts,
    check_objective,
    fill_settings,
)
from hsplugin_solo.resume import ExactResume

# Settings with their defaults.
DEFAULTS: dict[str, Any] = {
    "proj_hidden_dim": REQUIRED,
    "proj_output_dim": REQUIRED,
    "temperature": None,
    "align_weight": 1.0,
    "uniform_weight": 1.0,
    "alpha": 2.0,
    "t": 2.0,
}
MOCO_DEFAULTS: dict[str, Any] = {
    "proj_hidden_dim": REQUIRED,
    "proj_output_dim": REQUIRED,
    "queue_size": 65536,
    "temperature": None,
    "align_weight": 3.0,
    "uniform_weight": 1.0,
    "alpha": 2.0,
    "t": 3.0,
    "intra_batch": True,
}


class AlignUniform(ExactResume, SimCLR):
    """Alignment and uniformity on the backbone and projector of SimCLR.

    All crops are used: alignment over pairs with a large crop, uniformity over each crop,
    both over the batches of all ranks. Logs ``train_align_loss`` and ``train_uniform_loss``.

    Settings of method_kwargs:
        proj_hidden_dim, proj_output_dim: Widths of the projector; must be given.
        align_weight, uniform_weight: Weights of the terms, 0 or above; 1 each.
        alpha: Exponent of alignment, above 0; 2.
        t: Inverse width of the Gaussian of uniformity, above 0; 2.
        temperature: In place of these four, the temperature of the InfoNCE whose equal is wanted
            (:meth:`hsplugin.AlignUniformLoss.from_temperature`); none.

    Raises:
        ValueError: If a setting is missing, unknown, out of range or at odds with the temperature.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        settings = {name: self.cfg.method_kwargs[name] for name in DEFAULTS}
        self.objective = ManyCropLoss(check_objective(settings, "method_kwargs", "align_uniform"))

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fill in defaults and refuse invalid settings before anything is built."""
        _add_temperature(cfg)
        cfg = SimCLR.add_and_assert_specific_cfg(cfg)
        settings = fill_settings(cfg, "method_kwargs", DEFAULTS, "align_uniform", OF_OTHER_METHODS)
        check_counts(settings, ("proj_hidden_dim", "proj_output_dim"), "align_uniform")
        check_objective(settings, "method_kwargs", "align_uniform")
        return cfg

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Return this objective plus the loss of solo-learn's online classifier."""
        out = super(SimCLR, self).training_step(batch, batch_idx)
        terms = self.objective(out["z"], self.num_large_crops)
        self.log_dict(
            {"train_align_loss": terms.align, "train_uniform_loss": terms.uniform},
            on_epoch=True,
            sync_dist=True,
        )
        return terms.loss + out["loss"]


class AlignUniformMoCo(ExactResume, MoCoV2Plus):
    r"""Alignment and uniformity on MoCo V2+: momentum encoder and a queue of its keys.

    For queries q of one crop, keys k of another and that crop's queue of keys:

    .. math::
        w_a\, \mathrm{mean}_i \|q_i - k_i\|^\alpha + w_u \log \mathrm{mean}\, e^{-t d^2}

    where the second mean is over the pairs of queries and queue and, if ``intra_batch``, of
    queries among themselves. Averaged over query crops (all) and key crops (large ones). Queries
    stay on their rank; keys of all ranks enter the queue after the loss.
    Logs ``train_align_loss`` and ``train_uniform_loss``.

    Settings of method_kwargs:
        proj_hidden_dim, proj_output_dim: Widths of the projector; must be given.
        queue_size: Keys kept, a multiple of the batch over all ranks; 65536.
        align_weight, uniform_weight: Weights of the terms, 0 or above; 3 and 1.
        alpha: Exponent of alignment, above 0; 2.
        t: Inverse width of the Gaussian of uniformity, above 0; 3.
        temperature: In place of these four, the temperature of the InfoNCE whose equal is wanted
            (:meth:`hsplugin.AlignUniformLoss.from_temperature`); none.
        intra_batch: Whether pairs of queries count in uniformity; true.

    Raises:
        ValueError: If a setting is missing, unknown, out of range or at odds with the temperature.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        settings = {name: self.cfg.method_kwargs[name] for name in MOCO_DEFAULTS}
        objective = check_objective(settings, "method_kwargs", "align_uniform_moco")
        self.align_weight = objective["align_weight"]
        self.uniform_weight = objective["uniform_weight"]
        self.align = AlignLoss(objective["alpha"])
        self.t = objective["t"]
        self.intra_batch = bool(settings["intra_batch"])

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fill in defaults and refuse invalid settings before anything is built."""
        name = "align_uniform_moco"
        _add_temperature(cfg)
        cfg = MoCoV2Plus.add_and_assert_specific_cfg(cfg)
        settings = fill_settings(cfg, "method_kwargs", MOCO_DEFAULTS, name, OF_OTHER_METHODS)
        check_counts(settings, ("proj_hidden_dim", "proj_output_dim", "queue_size"), name)
        check_objective(settings, "method_kwargs", name)
        if not isinstance(settings["intra_batch"], bool):
            raise ValueError(
                f"method_kwargs.intra_batch of {name} must be true or false, "
                f"got {settings['intra_batch']!r}"
            )
        _check_queue(settings["queue_size"], cfg.optimizer.batch_size, 1)
        return cfg

    def on_fit_start(self) -> None:
        """Check the queue against the batch of all ranks; only now is their number known."""
        super().on_fit_start()
        _check_queue(self.queue_size, self.batch_size, self.trainer.world_size)

    def multicrop_forward(self, X: Tensor) -> dict[str, Any]:
        """Return the features and the query of a small crop."""
        out: dict[str, Any] = super().multicrop_forward(X)
        out["z"] = F.normalize(self.projector(out["feats"]), dim=-1)
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Return this objective plus the loss of solo-learn's online classifier."""
        out = super(MoCoV2Plus, self).training_step(batch, batch_idx)
        queries, keys = out["z"], out["momentum_z"]
        # The queue is overwritten below, before the backward pass reads what the loss saved.
        queue = self.queue.detach().clone()
        pairs = [(i, j) for i, j in product(range(len(queries)), range(len(keys))) if i != j]
        align = torch.stack([self.align(queries[i], keys[j]) for i, j in pairs]).mean()
        uniform = torch.stack([self._uniform(queries[i], queue[j].T) for i, j in pairs]).mean()

        self._dequeue_and_enqueue(torch.stack([gather(k) for k in keys]))
        self.log_dict(
            {"train_align_loss": align, "train_uniform_loss": uniform},
            on_epoch=True,
            sync_dist=True,
        )
        return self.align_weight * align + self.uniform_weight * uniform + out["loss"]

    def _uniform(self, queries: Tensor, queue: Tensor) -> Tensor:
        queries = queries.to(queue.dtype)
        return uniform_loss(queries, self.t, queue=queue, intra_batch=self.intra_batch)


def _add_temperature(cfg: DictConfig) -> None:
    """Set the temperature that the parent reads, where none is given."""
    if OmegaConf.select(cfg, "method_kwargs.temperature") is None:
        OmegaConf.update(cfg, "method_kwargs.temperature", None, force_add=True)


def _check_queue(queue_size: int, batch_size: int, ranks: int) -> None:
    if queue_size % (batch_size * ranks):
        raise ValueError(
            f"method_kwargs.queue_size of align_uniform_moco must be a multiple of the batch over "
            f"all ranks, {batch_size} x {ranks} = {batch_size * ranks}, got {queue_size}"
        )
