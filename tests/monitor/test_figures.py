"""The figures: what they show, and that files and loggers receive them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")

from hsplugin import plots
from hsplugin.monitor import GeometryWarning


def sphere(rows: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def test_no_figure_is_left_to_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure, (axes,) = plots.figure(1)
    plots.principal_plane(axes, sphere(20, 5))
    assert plots.png(figure).startswith(b"\x89PNG")
    assert pyplot.get_fignums() == before


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hsplugin\[compare\]"):
        plots.figure(1)


def test_circle_shows_unit_points_and_where_they_are_dense() -> None:
    angles = torch.cat([torch.linspace(-3.1, 3.1, 50), torch.full((200,), 0.5)])
    _, (axes,) = plots.figure(1)
    plots.features_on_circle(axes, 3 * torch.stack([angles.cos(), angles.sin()], dim=1))
    points = np.asarray(axes.collections[-1].get_offsets())
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)
    outline = axes.patches[0].get_xy()
    densest = outline[np.linalg.norm(outline, axis=1).argmax()]
    assert np.arctan2(densest[1], densest[0]) == pytest.approx(0.5, abs=0.03)


def test_plane_is_that_of_the_largest_variance() -> None:
    x = sphere(200, 6) * torch.tensor([1.0, 0.1, 0.1, 1.0, 0.1, 0.1])
    _, (axes,) = plots.figure(1)
    plots.principal_plane(axes, x)
    u = torch.nn.functional.normalize(x.double(), dim=1).numpy()
    values = np.linalg.eigvalsh(np.cov(u.T))[::-1]
    drawn = np.asarray(axes.collections[0].get_offsets())
    found = np.linalg.eigvalsh(np.cov(drawn.T))[::-1]
    assert found == pytest.approx(values[:2], rel=1e-4)
    assert f"{values[0] / values.sum():.0%}" in axes.get_xlabel()


def test_histogram_holds_every_distance_and_states_the_mean() -> None:
    x, y = sphere(300, 4), sphere(300, 4).flip(0)
    _, (axes,) = plots.figure(1)
    plots.distance_histogram(axes, 2 * x, 5 * y)
    area = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert area == pytest.approx(1)
    assert f"{float((x - y).norm(dim=1).mean()):.3f}" in axes.get_title()


def test_trajectory_goes_through_the_epochs_in_order() -> None:
    _, (axes,) = plots.figure(1)
    plots.trajectory(axes, [1.0, 0.5, 0.2], [-1.0, -2.0, -3.0])
    assert axes.lines[0].get_xydata().tolist() == [[1.0, -1.0], [0.5, -2.0], [0.2, -3.0]]


@pytest.mark.parametrize(("rows", "dim"), [(50, 6), (20, 300)])
def test_the_spectrum_is_that_of_the_covariance_of_unit_features(rows, dim):
    x = 3 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)).double()
    _, (axes,) = plots.figure(1)
    plots.spectrum(axes, x)
    u = (x / x.norm(dim=1, keepdim=True)).numpy()
    expected = np.linalg.eigvalsh(np.cov(u.T, bias=True))[::-1][: min(rows - 1, dim)]
    assert axes.lines[0].get_ydata() == pytest.approx(expected, rel=1e-6)
    assert axes.lines[1].get_ydata()[0] == 1 / dim
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda axes: plots.features_on_circle(axes, sphere(5, 3)), r"\(n, 2\)"),
        (lambda axes: plots.principal_plane(axes, sphere(1, 3)), "n >= 2"),
        (lambda axes: plots.distance_histogram(axes, sphere(5, 3), sphere(4, 3)), "pairs"),
        (lambda axes: plots.trajectory(axes, [1.0], []), "one length"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message: str) -> None:
    _, (axes,) = plots.figure(1)
    with pytest.raises(ValueError, match=message):
        draw(axes)


def test_an_epoch_is_drawn_to_a_file_also_in_two_dimensions(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor

    from tests.monitor.recipes import Recipe, fit

    for dim in (2, 6):
        folder = tmp_path / str(dim)
        monitor = GeometryMonitor(every_n_steps=1, figures=True, strict=True, prefix="shape")
        fit(Recipe(dim=dim), [monitor], default_root_dir=folder)
        files = sorted(path.name for path in (folder / "shape").iterdir())
        assert files == ["epoch-0000-step-00000005.png", "epoch-0001-step-00000010.png"]


def test_a_validation_is_drawn_with_its_own_trajectory(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor

    from tests.monitor.recipes import Validated, fit, loader

    monitor = GeometryMonitor(figures=True, strict=True)
    module = Validated()
    fit(module, [monitor], validation=loader(seed=3), default_root_dir=tmp_path)
    files = sorted(path.name for path in (tmp_path / "geometry").iterdir())
    names = ["epoch-0000-step-00000005.png", "epoch-0001-step-00000010.png"]
    assert files == [*names, *(f"val-{name}" for name in names)]
    assert [row["epoch"] for row in monitor.validation_history] == [0, 1]
    for epoch, row in enumerate(monitor.validation_history):
        pairs = module.validated[5 * epoch : 5 * epoch + 5]
        distances = [(unit(a) - unit(b)).square().sum(dim=1) for a, b in pairs]
        assert row["alignment"] == pytest.approx(float(torch.cat(distances).mean()), rel=1e-4)


def test_each_of_the_validations_of_an_epoch_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor

    from tests.monitor.recipes import Validated, fit, loader

    options = {"val_check_interval": 2, "max_epochs": 1, "default_root_dir": tmp_path}
    fit(Validated(), [GeometryMonitor(figures=True)], validation=loader(seed=3), **options)
    files = sorted(path.name for path in (tmp_path / "geometry").glob("val-*"))
    assert files == [f"val-epoch-0000-step-0000000{step}.png" for step in (2, 4)]


def test_a_figure_that_fails_is_no_reason_to_doubt_the_values(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor

    from tests.monitor.recipes import Recipe, fit

    (tmp_path / "geometry").write_text("in the way")
    monitor = GeometryMonitor(figures=True)
    with pytest.warns(GeometryWarning, match="monitor: no figure is drawn: FileExistsError"):
        fit(Recipe(), [monitor], default_root_dir=tmp_path)
    assert len(monitor.history) == 2


@pytest.mark.parametrize("finite", [0, 1])
def test_too_few_finite_rows_for_a_figure_are_not_drawn(finite: int, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor

    from tests.monitor.recipes import Recipe, fit

    class Poisoned(Recipe):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            a, b = self.views(batch)
            poison = torch.zeros(len(a), 1).index_fill(0, torch.arange(finite, len(a)), torch.nan)
            self.criterion(a, b + poison)
            return a.sum()

    # One batch an epoch, of which so many rows are finite.
    monitor = GeometryMonitor(["alignment"], every_n_steps=5, figures=True)
    with pytest.warns(GeometryWarning) as caught:
        fit(Poisoned(), [monitor], default_root_dir=tmp_path)
    assert len(monitor.history) == 2 * finite
    assert not any("figure" in str(warning.message) for warning in caught)
    assert not list(tmp_path.rglob("*.png"))


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double(), dim=1)


def test_what_is_drawn_is_spread_over_all_that_was_kept() -> None:
    from hsplugin.monitor.figures import MOST_POINTS, draw
    from hsplugin.monitor.views import Views

    angles = torch.linspace(0, 6, 2 * MOST_POINTS + 10)
    axes = draw(Views(torch.stack([angles.cos(), angles.sin()], dim=1)), []).axes[0]
    points = torch.as_tensor(np.asarray(axes.collections[-1].get_offsets()))
    drawn = torch.atan2(points[:, 1], points[:, 0]) % (2 * torch.pi)
    assert len(drawn) <= MOST_POINTS
    assert drawn.min() < 0.01 and drawn.max() > 5.99
    assert drawn.diff().std() < 1e-4


def test_tensorboard_receives_values_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from hsplugin_lightly import GeometryMonitor
    from pytorch_lightning.loggers import TensorBoardLogger

    from tests.monitor.recipes import Validated, fit, loader

    logger = TensorBoardLogger(tmp_path)
    monitor = GeometryMonitor(every_n_steps=1, figures=True, strict=True)
    fit(Validated(), [monitor], logger=logger, validation=loader(), log_every_n_steps=2)
    logger.finalize("success")
    events = accumulator.EventAccumulator(logger.log_dir)
    events.Reload()
    assert len(events.Images("geometry/figure")) == 2
    assert len(events.Images("geometry/val_figure")) == 2
    logged = [event.value for event in events.Scalars("geometry/uniformity")]
    assert logged == pytest.approx([row["uniformity"] for row in monitor.history])
    assert len(events.Scalars("geometry/uniformity_step")) == 5


def test_wandb_receives_figures(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("wandb")
    from hsplugin_lightly import GeometryMonitor
    from pytorch_lightning.loggers import WandbLogger

    from tests.monitor.recipes import Recipe, fit

    logger = WandbLogger(save_dir=tmp_path, offline=True, project="hsplugin")
    fit(Recipe(), [GeometryMonitor(figures=True, strict=True)], logger=logger)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary["geometry/uniformity"] < 0
    assert summary["geometry/figure"]["_type"] == "images/separated"
    assert len(list(tmp_path.rglob("media/images/geometry/figure_*.png"))) == 2


def test_mlflow_receives_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning")
    mlflow = pytest.importorskip("mlflow")
    from hsplugin_lightly import GeometryMonitor
    from pytorch_lightning.loggers import MLFlowLogger

    from tests.monitor.recipes import Recipe, fit

    # The file store, which needs no data base, has to be asked for since MLflow 3.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    logger = MLFlowLogger(tracking_uri=uri)
    fit(Recipe(), [GeometryMonitor(figures=True, strict=True)], logger=logger)
    client = mlflow.MlflowClient(uri)
    files = [file.path for file in client.list_artifacts(logger.run_id, "geometry/figure")]
    names = ["epoch-0000-step-00000005.png", "epoch-0001-step-00000010.png"]
    assert files == [f"geometry/figure/{name}" for name in names]
    assert client.get_run(logger.run_id).data.metrics["geometry/uniformity"] < 0


def test_any_logger_with_log_image_receives_figures(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from hsplugin_lightly import GeometryMonitor
    from pytorch_lightning.loggers import CSVLogger

    from tests.monitor.recipes import Recipe, fit

    seen: list[tuple[str, bytes, int | None]] = []

    class Own(CSVLogger):
        def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
            seen.append((key, Path(images[0]).read_bytes()[:4], step))

    monitor = GeometryMonitor(figures=True, strict=True)
    fit(Recipe(), [monitor], logger=Own(tmp_path))
    assert seen == [("geometry/figure", b"\x89PNG", step) for step in (5, 10)]
