from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

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
