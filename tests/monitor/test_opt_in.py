"""The monitor that the environment asks for, in a Trainer of either namespace."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from hsplugin.monitor import options as asked
from hsplugin.monitor.opt_in import callbacks
from hsplugin.monitor.options import VARIABLE, environment_options

NAMESPACES = ["pytorch_lightning", "lightning.pytorch"]


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("0", None),
        ("", None),
        ("Off", None),
        ("1", {}),
        ("true", {}),
        (
            "every_n_steps=10,metrics=rankme+lidar",
            {"every_n_steps": 10, "metrics": ["rankme", "lidar"]},
        ),
        ("metrics=rankme", {"metrics": ["rankme"]}),
        ("figures=on,strict=0,prog_bar=No", {"figures": True, "strict": False, "prog_bar": False}),
        (
            "module=backbone + projection_head, figures=true, labels=-1, prefix=shape",
            {
                "module": ["backbone", "projection_head"],
                "figures": True,
                "labels": -1,
                "prefix": "shape",
            },
        ),
    ],
)
def test_arguments_stand_in_the_environment(setting: str, options: dict | None) -> None:
    assert environment_options(setting) == options


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("every_n_step=10", "did you mean every_n_steps"),
        ("extract=f", "unknown key of HSPLUGIN_MONITOR 'extract'"),
        ("every_n_steps", "'every_n_steps' is no argument"),
        ("every_n_steps=1,,figures=true", "'' is no argument"),
        ("perhaps", "set it to 1"),
        ("figures=perhaps", "figures is on or off, got 'perhaps'"),
    ],
)
def test_a_mistake_is_told_once_and_stops_nothing(
    setting: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, setting)
    monkeypatch.setattr(asked, "_told", set())
    with pytest.warns(UserWarning, match=message):
        assert callbacks() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert callbacks() == []


def trained(namespace: str, added: Any, **options: Any) -> Any:
    """A Trainer of a namespace after two epochs of a module of that namespace."""
    lightning = pytest.importorskip(namespace)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Linear(4, 3)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return (self.backbone(batch[0]) - self.backbone(batch[0] + 0.1)).square().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = lightning.Trainer(
        callbacks=added,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = torch.utils.data.TensorDataset(torch.randn(16, 4))
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=8))
    return trainer


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("alone", [True, False])
def test_one_monitor_is_a_callback_of_each_namespace(namespace: str, alone: bool) -> None:
    import hsplugin

    monitor = hsplugin.GeometryMonitor(every_n_steps=1, strict=True)
    trainer = trained(namespace, monitor if alone else [monitor])
    assert isinstance(monitor, importlib.import_module(namespace).Callback)
    assert trainer.callback_metrics["geometry/uniformity"] <= 0


def test_the_names_of_the_frameworks_are_the_same_class() -> None:
    import hsplugin_lightly
    import hsplugin_solo

    import hsplugin

    assert hsplugin_lightly.GeometryMonitor is hsplugin.GeometryMonitor
    assert hsplugin_solo.GeometryMonitor is hsplugin.GeometryMonitor


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_environment_adds_a_monitor(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "metrics=rankme,every_n_steps=1")
    pytest.importorskip(namespace)
    assert set(trained(namespace, callbacks()).callback_metrics) == {"geometry/rankme"}
    monkeypatch.setenv(VARIABLE, "0")
    assert not trained(namespace, callbacks()).callback_metrics


def test_a_mistake_in_a_value_is_told_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "metrics=rankmee")
    with pytest.warns(UserWarning, match="not started: metrics: 'rankmee' is unknown"):
        assert not trained("pytorch_lightning", callbacks()).callback_metrics


def test_importing_hsplugin_imports_no_lightning() -> None:
    script = "import sys, json, hsplugin; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"lightning", "pytorch_lightning", "torchmetrics"}


@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="hsplugin")),
    reason="Lightning finds the monitor only if hsplugin is installed",
)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_trainer_finds_the_monitor_by_itself(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    assert "geometry/uniformity" in trained(namespace, None).callback_metrics
