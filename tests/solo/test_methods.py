from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.special import logsumexp

pytestmark = pytest.mark.solo


def config(method: str, **method_kwargs: Any) -> Any:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(
        {
            "name": "test",
            "method": method,
            "backbone": {"name": "resnet18"},
            "data": {
                "dataset": "cifar10",
                "num_classes": 10,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "sgd",
                "batch_size": 8,
                "lr": 0.1,
                "classifier_lr": 0.1,
                "weight_decay": 0.0,
            },
            "scheduler": {"name": "none"},
            "momentum": {},
            "max_epochs": 1,
            "method_kwargs": {"proj_hidden_dim": 32, "proj_output_dim": 16, **method_kwargs},
        }
    )
    OmegaConf.set_struct(cfg, False)
    return cfg


def step(model: Any, crops: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One training step outside a Trainer, with what it logs."""
    logged: dict[str, torch.Tensor] = {}
    model.log = lambda name, value, **_: logged.update({name: value})
    model.log_dict = lambda values, **_: logged.update(values)
    n = len(crops[0])
    loss = model.training_step([torch.arange(n), crops, torch.arange(n) % 10], 0)
    return loss, {name: value.detach() for name, value in logged.items()}


def align(x: torch.Tensor, y: torch.Tensor, alpha: float) -> float:
    return float((x - y).norm(dim=1).pow(alpha).mean())


def uniform(x: torch.Tensor, t: float) -> float:
    distances = torch.pdist(x).square().numpy()
    return float(logsumexp(-t * distances) - torch.tensor(len(distances)).double().log())


def unit(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().double()
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def crops() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]


def test_align_uniform_is_the_formula_on_the_projections(
    methods: dict[str, Any], crops: list[torch.Tensor]
) -> None:
    model = methods["align_uniform"](
        config("align_uniform", align_weight=0.98, uniform_weight=0.96, alpha=1.5, t=3.0)
    )
    seen: list[torch.Tensor] = []
    model.projector.register_forward_hook(lambda module, inputs, output: seen.append(output))
    loss, logged = step(model, crops)
    x, y = (unit(z) for z in seen)
    expected_align, expected_uniform = align(x, y, 1.5), (uniform(x, 3.0) + uniform(y, 3.0)) / 2
    assert float(logged["train_align_loss"]) == pytest.approx(expected_align, rel=1e-5)
    assert float(logged["train_uniform_loss"]) == pytest.approx(expected_uniform, rel=1e-5)
    expected = 0.98 * expected_align + 0.96 * expected_uniform
    assert float(loss.detach() - logged["train_class_loss"]) == pytest.approx(expected, rel=1e-5)
