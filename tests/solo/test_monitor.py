from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import monitored_methods, reference
from tests.monitored_methods import ONE_VIEW, check
from tests.solo.running import HERE, INSTALLED, python

pytestmark = pytest.mark.solo

SECTION = "solo-learn"

needs_entry_point = pytest.mark.skipif(
    not INSTALLED, reason="Lightning finds the monitor only if hsplugin is installed"
)


@pytest.fixture(scope="module")
def runs(solo: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every stock recipe trained in the unmodified checkout, without and with the monitor."""
    folders = {}
    for monitor in ("0", "1"):
        folder = folders[monitor] = tmp_path_factory.mktemp(f"monitor{monitor}")
        script = HERE / "train_stock_recipes.py"
        python(script, solo, images, folder, cwd=folder, HSPLUGIN_MONITOR=monitor)
    return folders


def report(folder: Path, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        json.loads((folder / f"{method}.json").read_text()),
        torch.load(folder / f"{method}.pt", weights_only=True),
    )


def test_every_stock_recipe_is_tabled(solo: Path) -> None:
    recipes = (solo / "scripts" / "pretrain" / "cifar").glob("*.yaml")
    assert sorted(recipe.stem for recipe in recipes) == monitored_methods.methods(SECTION)


@needs_entry_point
@pytest.mark.slow
@pytest.mark.parametrize("method", monitored_methods.methods(SECTION))
def test_the_monitor_measures_every_stock_recipe(runs: dict[str, Path], method: str) -> None:
    found, tensors = report(runs["1"], method)
    geometry = {k: v for k, v in found["logged"].items() if k.startswith("geometry/")}
    remark = "" if "geometry/alignment" in geometry else ONE_VIEW
    check(SECTION, method, found["measured"], remark)
    x, *others = (torch.nn.functional.normalize(z.double()) for z in tensors["embeddings"])
    expected = {"geometry/uniformity": float(reference.log_mean_potential(x, 2))}
    if method == "mae":  # of one view
        [refusal] = found["refusals"]
        assert "alignment is not measured: it needs a pair of views" in refusal
    else:
        assert not found["refusals"]
        expected["geometry/alignment"] = float(reference.align(x, others[0], 2))
    assert {k: geometry[k] for k in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


@needs_entry_point
@pytest.mark.slow
@pytest.mark.parametrize("method", monitored_methods.methods(SECTION))
def test_the_monitor_leaves_the_weights_identical_to_the_bit(
    runs: dict[str, Path], method: str
) -> None:
    (without, plain), (_, watched) = (report(runs[monitor], method) for monitor in "01")
    assert not any(name.startswith("geometry") for name in without["logged"])
    assert plain["weights"].keys() == watched["weights"].keys()
    for name, weight in plain["weights"].items():
        assert torch.equal(weight, watched["weights"][name]), name


def test_the_config_decides_on_the_monitor_before_the_environment() -> None:
    create = pytest.importorskip("omegaconf").OmegaConf.create
    from hsplugin.monitor.options import config_options

    def options(section: Any, asked: dict[str, Any] | None) -> Any:
        return config_options(create({"hsplugin": {"monitor": section}}), asked)

    assert config_options(create({"method": "byol"}), None) is None
    assert config_options(create({"method": "byol"}), {}) == {}
    assert config_options("no config at all", {"prefix": "shape"}) == {"prefix": "shape"}
    assert options({"enabled": False, "every_n_steps": 3}, {}) is None
    assert options({"every_n_steps": 3, "metrics": ["rankme"]}, None) == {
        "every_n_steps": 3,
        "metrics": ["rankme"],
    }
    assert options({"every_n_steps": 3}, {"every_n_steps": 5, "prefix": "shape"}) == {
        "every_n_steps": 3,
        "prefix": "shape",
    }
    with pytest.raises(ValueError, match="did you mean every_n_steps"):
        options({"every_n_step": 3}, None)
    with pytest.raises(TypeError, match="must be a mapping"):
        options("yes", None)


class TestInATrainer:
    @pytest.fixture
    def fit(self, tmp_path: Path) -> Any:
        pytest.importorskip("omegaconf")
        lightning = pytest.importorskip("lightning.pytorch")
        from omegaconf import OmegaConf

        from hsplugin.monitor.opt_in_callback import OptInMonitor

        class Method(lightning.LightningModule):
            def __init__(self, cfg: dict[str, Any]) -> None:
                super().__init__()
                self.cfg = OmegaConf.create(cfg)
                self.layer = torch.nn.Linear(4, 3)

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"z": self.layer(x)}

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                x = batch[0]
                return (self(x)["z"] - self(x + 0.1)["z"]).square().sum()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.01)

        def fit(cfg: dict[str, Any], asked: bool, *others: Any) -> Any:
            data = torch.utils.data.TensorDataset(torch.randn(16, 4))
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[OptInMonitor({} if asked else None), *others],
                default_root_dir=tmp_path,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Method(cfg), torch.utils.data.DataLoader(data, batch_size=8))
            return trainer

        return fit

    def test_it_starts_when_the_environment_asks(self, fit: Any) -> None:
        assert "geometry/uniformity" in fit({}, True).callback_metrics

    def test_it_starts_with_the_arguments_of_the_config(self, fit: Any) -> None:
        section = {"monitor": {"prefix": "shape", "metrics": ["rankme"]}}
        assert set(fit({"hsplugin": section}, False).callback_metrics) == {"shape/rankme"}

    def test_it_stays_out_when_nobody_asks(self, fit: Any) -> None:
        assert not fit({}, False).callback_metrics

    def test_it_leaves_the_place_to_a_monitor_of_the_users(self, fit: Any) -> None:
        from hsplugin_solo import GeometryMonitor

        metrics = fit({}, True, GeometryMonitor(prefix="mine")).callback_metrics
        assert metrics and all(name.startswith("mine/") for name in metrics)

    def test_a_mistake_in_the_config_is_a_warning(self, fit: Any) -> None:
        with pytest.warns(UserWarning, match="not started: unknown key"):
            trainer = fit({"hsplugin": {"monitor": {"metric": ["rankme"]}}}, False)
        assert not trainer.callback_metrics
