"""Methods of stable-pretraining, within a module of the user's: what is measured of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip(
    "stable_pretraining", reason="stable-pretraining is tested in its own environment"
)

import lightning.pytorch
import timm
from stable_pretraining import methods

from hsplugin import GeometryMonitor
from tests.monitor.tapping import assert_values_are_by_definition, tapped

VIT = "vit_tiny_patch16_224"
EMBEDDING = "the embedding that 'model' returns"
PATCHES = {"n_cls_prototypes": 64, "n_patch_prototypes": 32, "mask_ratio": 0.3}
DECODER = {"decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 2, "mask_ratio": 0.5}
# How a method is called, its settings, and what is measured.
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BarlowTwins": ("pair", {"projector_dims": (64, 64)}, "the inputs of 'model.barlow_loss'"),
    "BEiT": ("image", {"vocab_size": 64}, EMBEDDING),
    "BYOL": (
        "pair",
        {"projector_dims": (64, 32), "predictor_dims": (64, 32)},
        "the inputs of 'model.byol_loss'",
    ),
    "CMAE": ("pair", {"projector_dim": 64}, EMBEDDING),
    "CrossMAE": ("image", {**DECODER, "kept_mask_ratio": 0.5}, EMBEDDING),
    "Data2Vec": ("image", {"top_k_blocks": 2, "mask_ratio": 0.5}, EMBEDDING),
    "DINO": (
        "crops",
        {"n_prototypes": 64, "encoder_kwargs": {"dynamic_img_size": True}},
        EMBEDDING,
    ),
    "iBOT": ("crops", PATCHES, EMBEDDING),
    "iGPT": ("image", {}, EMBEDDING),
    "SimCLR": ("pair", {"projector_dims": (64, 32)}, "the inputs of 'model.simclr_loss'"),
}


class Module(lightning.pytorch.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, settings, _ = METHODS[name]
        encoder = timm.create_model(VIT, num_classes=0, depth=2)
        self.model = getattr(methods, name)(encoder_name=encoder, **settings)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = batch["views"]
        if self.call == "pair":
            return self.model(a, b)["loss"]
        return (self.model(global_views=[a, b]) if self.call == "crops" else self.model(a))["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trained(name: str, added: list[Any]) -> dict[str, Tensor]:
    """The weights after two steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 2, 3, 224, 224, generator=generator)
    data = [{"views": [*pair], "label": i % 2, "sample_idx": i} for i, pair in enumerate(images)]
    trainer = lightning.pytorch.Trainer(
        callbacks=added,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module(name)
    torch.manual_seed(1)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    return module.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_method_is_measured_and_its_weights_stay_the_same(name: str) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    seen = tapped(monitor)
    watched = trained(name, [monitor])
    assert monitor.measured == METHODS[name][2]
    assert all(len(views.x) == 4 and views.labels.tolist() == [0, 1, 0, 1] for views in seen)
    assert_values_are_by_definition(monitor.history[0], seen)
    alone = trained(name, [])
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[key], alone[key]) for key in alone)
