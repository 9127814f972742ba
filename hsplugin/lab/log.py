"""The log of one run in a tracker, written through Lightning's own logger of that tracker."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

import hsplugin
from hsplugin.errors import CommandError
from hsplugin.lab.evaluate import Pairs
from hsplugin.lab.files import read_json, write_json
from hsplugin.lab.locks import held
from hsplugin.lab.methods import options_of
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings

PREFIX = "geometry/val_"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
TAKES_PICTURES = ("tensorboard", "wandb", "mlflow")


def require(logger: str | None) -> None:
    """Refuse a logger that cannot start.

    Raises:
        CommandError: Its package is missing, or W&B has no key and is not offline.
    """
    package = PACKAGES.get(logger or "")
    if package and find_spec(package) is None:
        raise CommandError(f"--logger {logger}: {package} is missing; pip install {package}")
    if logger == "wandb" and os.environ.get("WANDB_MODE", "online") in ("online", "run"):
        import wandb

        # What W&B says of a missing key itself would come before our line.
        with redirect_stderr(io.StringIO()):
            key = wandb.login(prompt=False)
        if not key:
            raise CommandError(
                "--logger wandb: no API key; run wandb login, or set WANDB_MODE=offline"
            )


class Log:
    """What a tracker is told of one run: hyper-parameters, each epoch, the result, a picture.

    Values of the validation images have the names of the geometry monitor, such as
    ``geometry/val_uniformity``; all others those of ``history.csv`` and ``results.csv``. A resumed
    run continues its log and writes no epoch twice. If the tracker fails, the run goes on without
    a log, and the user is told once.

    Use as a context manager: a run that ends with an exception is marked as failed.

    Args:
        settings: What is run.
        machine: Names the tracker; without one nothing is logged.
        run: The run's folder, in a folder of runs below the comparison's.
        tell: Called with ``{"note": text}`` when the log is given up.
    """

    def __init__(
        self,
        settings: RunSettings,
        machine: Machine,
        run: Run,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.settings, self.kind, self.run, self.tell = settings, machine.logger, run, tell
        self._logger: Any = None
        self._failed = False
        # How far an earlier process of this run came: epochs, and one more for the result.
        self._state: dict[str, Any] = {"logger": self.kind, "id": None, "written": -1}

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._logger is not None:
            self._guarded(lambda: self._close("success" if kind is None else "failed"))

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log an epoch that is not measured."""
        self._once(epoch, lambda: self._values(step, {"epoch": epoch, **values}))

    def measured(self, row: Mapping[str, float], step: int, pairs: Pairs, labels: Tensor) -> None:
        """Log a row of the history, and what else the monitor measures.

        Args:
            row: The row; a loss before the first epoch is left out.
            step: The trainer's global step.
            pairs: Projections of the validation images.
            labels: Their labels.
        """

        def write() -> None:
            values = {k: v for k, v in row.items() if k != "loss" or row["epoch"] > 0}
            geometry = {name: values.pop(name) for name in pairs.geometry()}
            optimum = hsplugin.uniformity_optimum(pairs.a.shape[1])
            geometry["uniformity_gap"] = geometry["uniformity"] - optimum
            geometry |= _further(pairs, labels, set(geometry))
            self._values(step, {**values, **{f"{PREFIX}{k}": v for k, v in geometry.items()}})

        self._once(int(row["epoch"]), write)

    def result(
        self,
        values: Mapping[str, float],
        step: int,
        pairs: Pairs,
        labels: Tensor,
        history: Sequence[Mapping[str, float]],
    ) -> None:
        """Log the final measures, and the monitor's picture of the projections."""

        def write() -> None:
            self._values(step, values)
            if self.kind in TAKES_PICTURES:
                self._picture(step, pairs, labels, history)

        self._once(self.settings.epochs + 1, write)

    def _values(self, step: int, values: Mapping[str, float]) -> None:
        self._logger.log_metrics(dict(values), step=step)

    def _picture(
        self, step: int, pairs: Pairs, labels: Tensor, history: Sequence[Mapping[str, float]]
    ) -> None:
        from hsplugin import plots
        from hsplugin.monitor.figures import draw
        from hsplugin.monitor.loggers import log_picture
        from hsplugin.monitor.views import Views

        figure = draw(Views(pairs.a, pairs.b, labels), history)
        path = self.run.log / "figure.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(plots.png(figure))
        log_picture(self._logger, f"{PREFIX}figure", figure, path, step)

    def _once(self, number: int, write: Callable[[], None]) -> None:
        if self.kind is None or self._failed:
            return

        def do() -> None:
            if self._logger is None:
                self._open()
            if number <= self._state["written"]:
                return
            # Noted first: a process that is killed here leaves a gap, which history.csv fills, but
            # never the same epoch twice.
            self._state["written"] = number
            write_json(self.run.log_state, self._state)
            write()
            self._flush()

        self._guarded(do)

    def _guarded(self, do: Callable[[], None]) -> None:
        from hsplugin.monitor.undisturbed import undisturbed

        try:
            with undisturbed(nn.Identity()):
                do()
        except Exception as error:
            if self._failed:  # told already; this is the end of a broken log
                return
            self._failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self.tell({"note": f"--logger {self.kind} failed, going on without it: {reason}"})

    def _open(self) -> None:
        if self.run.log_state.exists():
            there = read_json(self.run.log_state)
            if there["logger"] == self.kind:
                self._state = there
        out = self.run.folder.resolve().parent.parent
        project, root = out.name or "hsplugin", out / "logs"
        self._logger = _MAKE[str(self.kind)](self.run, self._state, project, root, self.settings)
        settings = self.settings.as_dict()
        options = options_of(settings["method"], settings.pop("options"), settings)
        self._logger.log_hyperparams({**settings, **options})

    def _flush(self) -> None:
        self._logger.save()
        if self.kind == "tensorboard":
            self._logger.experiment.flush()

    def _close(self, status: str) -> None:
        self._logger.finalize(status)
        if self.kind == "wandb":
            self._logger.experiment.finish(exit_code=0 if status == "success" else 1)


def _further(pairs: Pairs, labels: Tensor, known: Collection[str]) -> dict[str, float]:
    """What else the geometry monitor measures unless told otherwise."""
    from hsplugin.metrics import METRICS
    from hsplugin.metrics.inputs import select_inputs
    from hsplugin.monitor.mixin import DEFAULT_METRICS

    values = {}
    for name in DEFAULT_METRICS:
        if name in known:
            continue
        metric = METRICS[name].build(max_samples=len(labels))
        inputs = select_inputs(metric.takes, metric.optional, pairs.a, pairs.b, labels)
        values[name] = float(metric.of(*inputs))
    return values


def _tensorboard(
    run: Run, state: dict[str, Any], project: str, root: Path, settings: RunSettings
) -> Any:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(
        str(run.folder), name=run.log.name, version="", default_hp_metric=False
    )


def _csv(run: Run, state: dict[str, Any], project: str, root: Path, settings: RunSettings) -> Any:
    from pytorch_lightning.loggers import CSVLogger

    path = run.log / "metrics.csv"
    rows = []
    if state["written"] >= 0 and path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    logger = CSVLogger(str(run.folder), name=run.log.name, version="")
    # Lightning's logger removes what an earlier process wrote.
    for row in rows:
        step = int(row.pop("step"))
        logger.log_metrics({k: v for k, v in row.items() if v != ""}, step=step)  # type: ignore[misc]
    return logger


def _mlflow(
    run: Run, state: dict[str, Any], project: str, root: Path, settings: RunSettings
) -> Any:
    from pytorch_lightning.loggers import MLFlowLogger

    # MLflow 3 asks its users to confirm that they mean files, which need no further package.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    root.mkdir(exist_ok=True)
    logger = MLFlowLogger(
        project,
        run_name=run.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        save_dir=str(root / "mlruns"),
        tags={"method": settings.method},
        run_id=state["id"],
        synchronous=True,
    )
    # Two runs that start together would both create the experiment.
    with held(root):
        state["id"] = logger.run_id
    return logger


def _wandb(run: Run, state: dict[str, Any], project: str, root: Path, settings: RunSettings) -> Any:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    root.mkdir(exist_ok=True)
    state["id"] = state["id"] or secrets.token_hex(4)
    logger = WandbLogger(
        run.name,
        save_dir=str(root),
        id=state["id"],
        project=os.environ.get("WANDB_PROJECT", project),
        group=settings.method,
        settings=wandb.Settings(silent=True, console="off"),
    )
    _ = logger.experiment
    return logger


_MAKE: dict[str, Callable[[Run, dict[str, Any], str, Path, RunSettings], Any]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
