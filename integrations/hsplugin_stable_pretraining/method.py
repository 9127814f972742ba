"""The objective as a method class of stable-pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hsplugin import AlignUniformLoss

try:
    from stable_pretraining.methods import SimCLR
    from transformers.utils import ModelOutput
except ImportError as error:
    raise ImportError(
        "hsplugin_stable_pretraining needs stable-pretraining: "
        "pip install 'hsplugin[stable-pretraining]'"
    ) from error


@dataclass
class AlignUniformOutput(ModelOutput):
    """What :class:`AlignUniform` returns.

    Attributes:
        loss: The weighted sum of both terms; 0 for a single view.
        embedding: Output of the backbone, (2N, D) for two views and (N, D) for one.
        projection: Output of the projector, (2N, d); None for a single view.
        align: Alignment of the projections, before its weight; None for a single view.
        uniform: Their uniformity, before its weight; None for a single view.
    """

    loss: Tensor | None = None
    embedding: Tensor | None = None
    projection: Tensor | None = None
    align: Tensor | None = None
    uniform: Tensor | None = None


class AlignUniform(SimCLR):
    """Alignment and uniformity with the architecture of stable-pretraining's ``SimCLR``.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

    Args:
        encoder_name: Name of a timm model, or a module that maps images to (N, D).
        projector_dims: Widths of the projector's layers; the last is the dimension d.
        align_uniform_loss: The loss of two views (N, d); by default
            :class:`hsplugin.AlignUniformLoss` with the paper's settings. In place of a contrastive
            loss of temperature tau, pass ``hsplugin.AlignUniformLoss.from_temperature(tau)``.
        low_resolution: Adapt the first convolution to images of 32 x 32.
        pretrained: Load the timm model's weights.

    Raises:
        ValueError: If there is no projector dimension.

    Example::

        method = AlignUniform("resnet18", (512, 128), low_resolution=True)
        method(view1, view2).loss.backward()
    """

    def __init__(
        self,
        encoder_name: str | nn.Module = "vit_small_patch16_224",
        projector_dims: Sequence[int] = (2048, 2048, 256),
        align_uniform_loss: AlignUniformLoss | None = None,
        low_resolution: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__(
            encoder_name, projector_dims, low_resolution=low_resolution, pretrained=pretrained
        )
        del self.simclr_loss
        self.align_uniform_loss = align_uniform_loss or AlignUniformLoss()

    def forward(self, view1: Tensor, view2: Tensor | None = None) -> AlignUniformOutput:
        """Return loss and features of two views (N, 3, H, W), or the embedding of one.

        Raises:
            TypeError: As :class:`hsplugin.AlignUniformLoss`.
            ValueError: As :class:`hsplugin.AlignUniformLoss`.
        """
        if view2 is None:
            embedding = self.backbone(view1)
            return AlignUniformOutput(loss=embedding.new_zeros(()), embedding=embedding)
        embeddings = [self.backbone(view) for view in (view1, view2)]
        projections = [self.projector(embedding) for embedding in embeddings]
        loss, align, uniform = self.align_uniform_loss.components(*projections)
        return AlignUniformOutput(
            loss, torch.cat(embeddings), torch.cat(projections), align, uniform
        )
