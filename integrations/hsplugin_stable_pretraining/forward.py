"""The objective as a forward function of ``stable_pretraining.Module``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def views_of(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The views that ``MultiViewTransform`` made, a list or named; none of a single image."""
    if "views" not in batch and "image" in batch:
        return []
    views = batch.get("views", batch)
    views = views.values() if isinstance(views, Mapping) else views
    # The training step adds the batch's number to named views.
    return [view for view in views if isinstance(view, Mapping)]


def align_uniform(self: Any, batch: Mapping[str, Any], stage: str) -> dict[str, Tensor]:
    """Alignment and uniformity of two views, in the place of ``stable_pretraining.forward.simclr``.

    Logs ``<stage>/loss`` and, before their weights, ``<stage>/align`` and ``<stage>/uniform``.
    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

    Args:
        self: The module, with a ``backbone`` and a ``projector`` that return (N, d), and an
            ``align_uniform_loss`` such as :class:`hsplugin.AlignUniformLoss`.
        batch: Two views, as a list under "views" or by name, or a single "image"; with "label"
            or without.
        stage: What precedes the logged names.

    Returns:
        "embedding" and "projection", the outputs of backbone and projector, (2N, d) for two views,
        the first view first; "label" in the same order if the batch has labels; in training also
        the scalar "loss".

    Raises:
        AttributeError: If the module lacks one of its parts.
        TypeError: As :class:`hsplugin.AlignUniformLoss`.
        ValueError: If there are not two views, or as :class:`hsplugin.AlignUniformLoss`.

    Example::

        module = stable_pretraining.Module(
            forward=align_uniform,
            backbone=backbone,
            projector=projector,
            align_uniform_loss=hsplugin.AlignUniformLoss.from_temperature(0.5),  # simclr_loss's
        )
    """
    views = views_of(batch)
    if not views and "image" in batch:
        views = [batch]
    elif len(views) != 2:
        raise ValueError(
            f"align_uniform takes a batch of two views or of one 'image', got {len(views)} views; "
            "give MultiViewTransform two transforms"
        )
    embeddings = [self.backbone(view["image"]) for view in views]
    projections = [self.projector(embedding) for embedding in embeddings]
    out = {"embedding": torch.cat(embeddings), "projection": torch.cat(projections)}
    if "label" in views[0]:
        out["label"] = torch.cat([view["label"] for view in views])
    if self.training and len(views) == 2:
        terms = self.align_uniform_loss.components(*projections)
        out["loss"] = terms.loss
        for name, value in terms._asdict().items():
            self.log(f"{stage}/{name}", value, on_step=True, on_epoch=True, sync_dist=True)
    return out
