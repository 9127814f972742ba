"""The forward function and the method class in stable-pretraining's own training."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.classification import MulticlassAccuracy

from tests import reference
from tests.stable_pretraining import training

spt = pytest.importorskip(
    "stable_pretraining", reason="stable-pretraining is tested in its own environment"
)

from hsplugin_stable_pretraining import AlignUniform, align_uniform  # noqa: E402

from hsplugin import AlignUniformLoss  # noqa: E402


def module(**settings: float) -> torch.nn.Module:
    return spt.Module(
        forward=align_uniform,
        align_uniform_loss=AlignUniformLoss(**settings),
        **training.parts(),
    )


@pytest.mark.parametrize("form", ["list", "named"])
def test_training_logs_the_loss_of_the_definition(tmp_path: Path, form: str):
    watched = module(align_weight=3.0, t=1.5)
    trainer = training.fit(watched, tmp_path, lr=0.0, train=training.loader(form))
    x, y = training.embeddings(watched, head=True)
    align = reference.align(x, y, 2).item()
    uniform = sum(reference.log_mean_potential(z, 1.5).item() for z in (x, y)) / 2
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["fit/align"] == pytest.approx(align, rel=1e-5)
    assert logged["fit/uniform"] == pytest.approx(uniform, rel=1e-5)
    assert logged["fit/loss"] == pytest.approx(3 * align + uniform, rel=1e-5)


def test_the_loss_falls_and_probes_find_embeddings_and_labels(tmp_path: Path):
    watched = module()
    probe = spt.callbacks.OnlineProbe(
        watched,
        name="probe",
        input="embedding",
        target="label",
        probe=torch.nn.Linear(8, 3),
        loss=torch.nn.CrossEntropyLoss(),
        metrics={"top1": MulticlassAccuracy(3)},
    )
    loss = AlignUniformLoss()
    before = loss(*training.embeddings(watched, head=True))
    trainer = training.fit(watched, tmp_path, probe)
    assert loss(*training.embeddings(watched, head=True)) < before - 0.1
    assert "eval/probe_top1" in trainer.callback_metrics


def test_outputs_follow_the_order_of_the_views():
    watched = module().train()
    watched.log = lambda *_, **__: None  # no trainer
    batch = next(iter(training.loader()))
    out = watched(batch, "fit")
    labels = training.Views("list").labels
    assert torch.equal(out["label"], torch.cat([labels, labels]))
    for key, head in (("embedding", False), ("projection", True)):
        found = normalize(out[key].double()).detach()
        torch.testing.assert_close(found, torch.cat(training.embeddings(watched, head)))
    single = watched(next(iter(training.loader("image"))), "validate")
    assert torch.equal(single["embedding"], out["embedding"][:12]) and "loss" not in single


def test_other_numbers_of_views_are_refused():
    batch = next(iter(training.loader(views=3)))
    with pytest.raises(ValueError, match="two views or of one 'image', got 3 views"):
        module()(batch, "fit")
    with pytest.raises(ValueError, match="got 0 views"):
        module()({"pixels": torch.zeros(2, 3, 4, 4)}, "fit")


def test_a_config_names_it_as_their_own_forward_functions():
    from omegaconf import OmegaConf
    from stable_pretraining.config import recursive_instantiate

    made = recursive_instantiate(
        OmegaConf.create(
            {
                "module": {
                    "_target_": "stable_pretraining.Module",
                    "forward": "hsplugin_stable_pretraining.align_uniform",
                    "align_uniform_loss": {"_target_": "hsplugin.AlignUniformLoss", "t": 3.0},
                },
                "callbacks": {
                    "_target_": "hsplugin_stable_pretraining.GeometryMonitor",
                    "name": "heads",
                    "input": "projection",
                },
            }
        )
    )
    assert made["module"].forward.__func__ is align_uniform
    assert made["module"].align_uniform_loss.t == 3.0
    assert made["callbacks"].prefix == "heads"


def test_the_method_is_simclr_with_the_loss_of_the_definition():
    method = AlignUniform(training.parts()["backbone"], (16, 5), AlignUniformLoss(2.0, t=3.0))
    simclr = spt.methods.SimCLR(training.parts()["backbone"], (16, 5))
    assert [*method.state_dict()] == [*simclr.state_dict()]
    out = method(*training.Views("list").images.unbind(1))
    x, y = (normalize(z.double()).detach() for z in out.projection.chunk(2))
    align = reference.align(x, y, 2).item()
    uniform = sum(reference.log_mean_potential(z, 3.0).item() for z in (x, y)) / 2
    assert (out.align.item(), out.uniform.item()) == pytest.approx((align, uniform), rel=1e-5)
    assert out.loss.item() == pytest.approx(2 * align + uniform, rel=1e-5)
    single = method.eval()(training.Views("image").images[:, 0])
    assert torch.equal(single.embedding, out.embedding[:12])
    assert single.loss == 0 and single.projection is None


def test_the_method_trains_as_in_their_recipes(tmp_path: Path):
    def forward(self, batch, stage):
        views = [view["image"] for view in batch.get("views", [batch])]
        return dict(AlignUniform.forward(self, *views))

    method = AlignUniform(training.parts()["backbone"], (16, 5))
    start = method.backbone[2].weight.clone()
    method.forward = types.MethodType(forward, method)
    training.fit(method, tmp_path)
    assert not torch.equal(method.backbone[2].weight, start)
