"""The figure of an epoch, written to a file and to the loggers that show images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsplugin.monitor.loggers import log_picture
from hsplugin.monitor.views import Views

MOST_POINTS = 2000


def draw(views: Views, history: Sequence[Mapping[str, float]]) -> Any:
    """Features, their spectrum, positive distances and the path so far, where there are any.

    Raises:
        ImportError: If matplotlib is missing.
    """
    from hsplugin import plots

    step = -(-len(views.x) // MOST_POINTS)
    views = views.map(lambda tensor: tensor[::step].float())
    measured = [row for row in history if {"alignment", "uniformity"} <= set(row)]
    figure, axes = plots.figure(2 + (views.y is not None) + bool(measured))
    if views.x.shape[1] == 2:
        plots.features_on_circle(axes.pop(0), views.x, views.labels)
    else:
        plots.principal_plane(axes.pop(0), views.x, views.labels)
    plots.spectrum(axes.pop(0), views.x)
    if views.y is not None:
        plots.distance_histogram(axes.pop(0), views.x, views.y)
    if measured:
        plots.trajectory(
            axes.pop(0),
            [row["alignment"] for row in measured],
            [row["uniformity"] for row in measured],
        )
    return figure


def show(
    trainer: Any,
    prefix: str,
    stage: str,
    views: Views | None,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write an epoch's figure to the log directory and to the loggers that take pictures.

    Args:
        trainer: Lightning's; gives the epoch, the log directory and the loggers.
        prefix: The monitor's.
        stage: "val_" for a validation, "test_" for a test, nothing for training.
        views: Features to draw, or None if there are none.
        history: The stage's values, one row an epoch.

    Raises:
        ImportError: If matplotlib is missing.
        OSError: If the file cannot be written.
    """
    # log_dir is broadcast from rank zero, so every rank must read it.
    folder = Path(trainer.log_dir or trainer.default_root_dir) / prefix
    if not trainer.is_global_zero or views is None:
        return
    views = views.finite()
    if min(views.x.shape) < 2:
        return
    from hsplugin import plots

    figure = draw(views, history)
    image = plots.png(figure)
    folder.mkdir(parents=True, exist_ok=True)
    # There may be several validations in an epoch.
    when = f"epoch-{trainer.current_epoch:04d}-step-{trainer.global_step:08d}"
    path = folder / f"{stage.replace('_', '-')}{when}.png"
    path.write_bytes(image)
    for logger in trainer.loggers:
        log_picture(logger, f"{prefix}/{stage}figure", figure, path, trainer.global_step)
