"""Methods of stable-pretraining, within a module of the user's: what is measured of each."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip(
    "stable_pretraining", reason="stable-pretraining is tested in its own environment"
)

import lightning.pytorch
import stable_pretraining
import timm
from stable_pretraining import methods

from hsplugin import GeometryMonitor
from tests import monitored_methods
from tests.monitor.tapping import assert_values_are_by_definition, tapped
from tests.monitored_methods import NOTHING, ONE_VIEW, check, tokens

SECTION = "stable-pretraining"
VIT = "vit_tiny_patch16_224"
PAIR, IMAGE, CROPS = "pair", "image", "crops"
PROJECTOR = {"projector_dims": (64, 32)}
PATCHES = {"n_cls_prototypes": 64, "n_patch_prototypes": 32, "projector_hidden_dim": 64}
PROTOTYPES = {"n_prototypes": 48, "projector_hidden_dim": 64}
PREDICTOR = {"predictor_embed_dim": 64, "predictor_depth": 1}
DECODER = {"decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 2}
# How a method is called, and its settings.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "BarlowTwins": (PAIR, PROJECTOR),
    "BEiT": (IMAGE, {"vocab_size": 64}),
    "BYOL": (PAIR, {**PROJECTOR, "predictor_dims": (64, 32)}),
    "CMAE": (PAIR, {"projector_dim": 64}),
    "CrossMAE": (IMAGE, {**DECODER, "mask_ratio": 0.5, "kept_mask_ratio": 0.5}),
    "Data2Vec": (IMAGE, {"top_k_blocks": 2}),
    "DINO": (CROPS, {**PROTOTYPES, "encoder_kwargs": {"dynamic_img_size": True}}),
    "DINOv2": (CROPS, PATCHES),
    "DINOv3": (CROPS, PATCHES),
    "iBOT": (CROPS, PATCHES),
    "iGPT": (IMAGE, {}),
    "IJEPA": (IMAGE, PREDICTOR),
    "LeJEPA": (CROPS, {"n_slices": 8}),
    "MAE": (IMAGE, DECODER),
    "MaskFeat": (IMAGE, {}),
    "MIMRefiner": (CROPS, PATCHES),
    "MoCov2": (PAIR, {**PROJECTOR, "queue_length": 64}),
    "MoCov3": (PAIR, {"projector_dims": (64, 64, 32), "predictor_hidden_dim": 64}),
    "MSN": (PAIR, PROTOTYPES),
    "NEPA": (IMAGE, {"depth": 2, "embed_dim": 96, "num_heads": 2}),
    "NNCLR": (PAIR, {**PROJECTOR, "predictor_hidden_dim": 64, "queue_length": 64}),
    "PIRL": (PAIR, {"projector_dim": 32, "queue_length": 64}),
    "PMSN": (PAIR, PROTOTYPES),
    "SALT": (IMAGE, {**PREDICTOR, "predictor_num_heads": 2}),
    "SimCLR": (PAIR, PROJECTOR),
    "SimMIM": (IMAGE, {}),
    "SimSiam": (PAIR, {"projector_dim": 64, "predictor_hidden_dim": 32}),
    "SwAV": (PAIR, {**PROJECTOR, "n_prototypes": 48}),
    "TiCO": (PAIR, PROJECTOR),
    "VICReg": (PAIR, PROJECTOR),
    "VICRegL": (PAIR, {"projector_dim": 64}),
    "WMSE": (PAIR, {"projector_dims": (64, 2)}),
}
# What the argument for the encoder is called, where it is not ``encoder_name``.
ENCODER = {
    "IJEPA": "model_or_model_name",
    "MAE": "model_or_model_name",
    "MIMRefiner": "pretrained_encoder",
}
# These take the name of an encoder, and build it, or none.
OWN_ENCODER = {"LeJEPA": {"encoder_name": VIT}, "SALT": {"encoder_name": VIT}, "NEPA": {}}


@pytest.fixture(autouse=True)
def no_reports() -> None:
    """Leave out what describes the environment and the modules of every Trainer for seconds."""
    slow = ("env_dump", "trainer_info", "module_summary", "hf_checkpoint")
    stable_pretraining.set(default_callbacks=dict.fromkeys(slow, False))


class Module(lightning.pytorch.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, settings = METHODS[name]
        encoder: dict[str, Any] = OWN_ENCODER.get(name) or {}
        if name not in OWN_ENCODER:
            encoder_name = ENCODER.get(name, "encoder_name")
            encoder = {encoder_name: timm.create_model(VIT, num_classes=0, depth=2)}
        self.model = getattr(methods, name)(**encoder, **settings)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = batch["views"]
        if self.call == PAIR:
            return self.model(a, b)["loss"]
        if self.call == IMAGE:
            return self.model(a)["loss"]
        local = {"local_views": [a]} if isinstance(self.model, methods.LeJEPA) else {}
        return self.model(global_views=[a, b], **local)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.01)


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


def test_every_method_is_tabled() -> None:
    assert sorted(METHODS) == sorted(methods.__all__) == sorted(monitored_methods.methods(SECTION))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_method_is_measured_and_its_weights_stay_the_same(name: str) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    seen = tapped(monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = trained(name, [monitor])
    if not monitor.history:
        assert any("pool='mean'" in str(warning.message) for warning in caught)
        monitor = GeometryMonitor(every_n_steps=1, pool="mean")
        seen = tapped(monitor)
        watched = trained(name, [monitor])
        check(SECTION, name, NOTHING, tokens(monitor.measured))
    else:
        remark = "" if "alignment" in monitor.history[0] else ONE_VIEW
        check(SECTION, name, monitor.measured, remark)
    assert all(len(views.x) == 4 and views.labels.tolist() == [0, 1, 0, 1] for views in seen)
    assert_values_are_by_definition(monitor.history[0], seen)
    alone = trained(name, [])
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[key], alone[key]) for key in alone)
