from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.solo.running import config

pytestmark = pytest.mark.solo


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("align_uniform", [], ("cifar10", 10, 256, "lars", (1, 1, 2, 2))),
        ("align_uniform", ["data.dataset=cifar100"], ("cifar100", 100, 256, "lars", (1, 1, 2, 2))),
        ("align_uniform_stl10", [], ("stl10", 10, 128, "sgd", (0.98, 0.96, 2, 2))),
        ("align_uniform_moco", [], ("cifar10", 10, 256, "sgd", (3, 1, 2, 3))),
        ("align_uniform_moco_stl10", [], ("stl10", 10, 128, "sgd", (3, 1, 2, 3))),
    ],
)
def test_a_config_of_ours_builds_its_method_and_optimizer(
    methods: dict[str, Any], name: str, overrides: list[str], expected: tuple[Any, ...]
) -> None:
    import hydra
    from omegaconf import OmegaConf
    from solo.args.pretrain import parse_cfg

    with hydra.initialize_config_module("hsplugin_solo.conf", version_base="1.2"):
        cfg = hydra.compose(name, overrides)
    OmegaConf.set_struct(cfg, False)
    cfg = parse_cfg(cfg)
    model = methods[cfg.method](cfg)
    model._trainer = SimpleNamespace(estimated_stepping_batches=100, world_size=1)
    [optimizer], _ = model.configure_optimizers()
    kwargs = cfg.method_kwargs
    dataset, classes, dim, optimizer_name, settings = expected
    assert (cfg.data.dataset, model.num_classes, cfg.optimizer.name) == (
        dataset,
        classes,
        optimizer_name,
    )
    assert [kwargs[k] for k in ("align_weight", "uniform_weight", "alpha", "t")] == [*settings]
    assert model.projector[2].out_features == dim
    assert not cfg.auto_resume.enabled and not cfg.wandb.enabled
    assert {group["name"] for group in optimizer.param_groups} >= {"backbone", "projector"}


def test_every_config_of_solo_learn_serves_our_methods(methods: dict[str, Any], solo: Path) -> None:
    from omegaconf import OmegaConf

    found = [*solo.glob("scripts/pretrain/*/*.yaml")]
    assert len(found) > 30
    for path in found:
        stock = OmegaConf.load(path)
        if "method_kwargs" not in stock:
            continue
        for name in ("align_uniform", "align_uniform_moco"):
            cfg = config(name)
            cfg.method_kwargs = OmegaConf.merge(
                {"proj_hidden_dim": 8, "proj_output_dim": 8}, stock.method_kwargs
            )
            cfg.optimizer.batch_size = 1
            filled = methods[name].add_and_assert_specific_cfg(cfg).method_kwargs
            temperature = stock.method_kwargs.get("temperature")
            expected = {"align_uniform": 2, "align_uniform_moco": 3}[name]
            assert filled.t == (1 / (2 * temperature) if temperature else expected)
