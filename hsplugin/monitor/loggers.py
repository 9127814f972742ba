"""Hands a picture to a run's logger, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Logger, key, figure, path of its file, step.
_Write = Callable[[Any, str, Any, Path, int], Any]


def _tensorboard(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    logger.experiment.add_figure(key, figure, step)


def _mlflow(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    logger.experiment.log_artifact(logger.run_id, str(path), artifact_path=key)


def _comet(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    logger.experiment.log_image(str(path), name=key, step=step)


def _neptune(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    logger.experiment[key].append(figure, step=step)


def _aim(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    from aim import Image

    logger.experiment.track(Image(str(path)), name=key, step=step)


def _log_image(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    logger.log_image(key, [str(path)], step=step)


# By name: each Lightning namespace has its own classes, and any of them may be missing.
_LOGGERS: Mapping[str, _Write] = {
    "TensorBoardLogger": _tensorboard,
    "MLFlowLogger": _mlflow,
    "CometLogger": _comet,
    "NeptuneLogger": _neptune,
    "AimLogger": _aim,
}


def log_picture(logger: Any, key: str, figure: Any, path: Path, step: int) -> None:
    """Log a figure, if the logger takes pictures.

    These are TensorBoard, MLflow, Comet, Neptune, Aim, and every logger with a ``log_image(key,
    images, step)``, such as that of W&B.

    Args:
        logger: One of Lightning's or of another package.
        key: The picture's name.
        figure: A figure of matplotlib.
        path: The file that it was written to.
        step: The trainer's global step.
    """
    if hasattr(logger, "log_image"):
        _log_image(logger, key, figure, path, step)
        return
    for kind in type(logger).__mro__:
        if kind.__name__ in _LOGGERS:
            _LOGGERS[kind.__name__](logger, key, figure, path, step)
            return
