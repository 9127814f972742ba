"""GeometryMonitor: watches alignment, uniformity and rank of any method while it trains.

The mixin depends on no framework; ``hsplugin_lightly.GeometryMonitor`` (pytorch_lightning) and
``hsplugin_solo.GeometryMonitor`` (lightning.pytorch) add the Callback of each namespace.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hsplugin.checks import check_integer
from hsplugin.monitor.guard import GeometryWarning, line, never_fatal
from hsplugin.monitor.measures import WIDEST_BY_DEFAULT, Measures, build_metrics
from hsplugin.monitor.samples import Samples
from hsplugin.monitor.taps import Extract, RefusedError, Taps
from hsplugin.potential.distributed import rank

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["GeometryMonitorMixin", "GeometryWarning"]

DEFAULT_METRICS = ("alignment", "uniformity", "wasserstein_uniformity", "rankme")


class GeometryMonitorMixin:
    """Lightning callback that measures the geometry of a method's features, and only measures.

    Training does not change: features are copied without gradient, no random state is touched, the
    host never waits for the device within a step, and the weights are bit-identical. An error in
    the monitor becomes one warning.

    **Training.** Every ``every_n_steps``-th batch of an epoch, starting with the first, is kept, up
    to ``max_samples`` rows spread evenly over the epoch. At the end of the epoch they give
    ``geometry/alignment``, ``geometry/uniformity``, ``geometry/uniformity_gap`` (to the lowest
    value attainable in that dimension), ``geometry/wasserstein_uniformity``, ``geometry/rankme``:
    over all ranks, for loggers, the progress bar, ``EarlyStopping`` and
    ``ModelCheckpoint(monitor="geometry/uniformity")``. Within the epoch
    ``geometry/alignment_step`` and ``geometry/uniformity_step`` show the latest batch kept on
    rank zero.

    **Validation.** If the validation step passes features, all of the first loader's are measured
    and logged as ``geometry/val_uniformity`` and so on.

    **Stopping and checkpoints.** Where validation runs more or less than once an epoch
    (``val_check_interval``, ``check_val_every_n_epoch``), Lightning's callbacks read the metrics at
    its end, before the epoch has training values. Use ``geometry/val_uniformity`` there, or keep
    ``geometry/uniformity`` with ``EarlyStopping(..., check_on_train_epoch_end=True)`` and
    ``ModelCheckpoint(..., save_on_train_epoch_end=True)``.

    Metrics of one set of features get the first view, or the only one with a gradient (a query, a
    prediction); alignment gets the first two views of a step.

    **Where the features come from.** The first that applies: ``extract``; ``module``; the
    ``"z"`` that the module's ``forward`` returns (solo-learn); the two inputs of its
    ``criterion`` (Lightly). Lists, prototype scores, labels and reconstruction targets are
    refused, once, with the reason.

    Args:
        metrics: Names in :data:`hsplugin.metrics.METRICS`, or a mapping from name to
            ``torchmetrics.Metric``. Of other packages' metrics, an ``update(x)`` gets features,
            ``update(x, labels)`` also the labels of the batch, any other ``update(x, y)`` both
            views.
        extract: ``extract(pl_module, outputs, batch)`` returning features (n, d), a pair of them
            or a dictionary with "x" and optionally "y" and "labels". Called after each training and
            validation step, in evaluation mode, without gradient, with random states restored.
        module: Name of the submodule whose output is measured, such as "projection_head". A
            submodule that returns a scalar is treated as a criterion: its inputs are measured.
        every_n_steps: Measure every n-th training batch of an epoch.
        prefix: The part of each logged name before the slash. Two monitors need two prefixes.
        max_samples: Rows that a rank keeps of a training epoch at most, and that uniformity, which
            compares all pairs, uses of a validation epoch at most.
        figures: Draw features of rank zero, positive distances and the trajectory so far at the
            end of each epoch: to TensorBoard and W&B if they log the run, and to
            ``<log directory>/<prefix>/epoch-0000-step-00000100.png``; for a validation as
            ``val_figure`` and ``val-epoch-0000-step-00000100.png``.
        prog_bar: Show the epoch's values in the progress bar.
        strict: Raise errors instead of warning.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, a metric is unknown, or both ``extract`` and
            ``module`` are given.
    """

    def __init__(
        self,
        metrics: Sequence[str] | Mapping[str, Metric] | None = None,
        extract: Extract | None = None,
        module: str | None = None,
        every_n_steps: int = 50,
        prefix: str = "geometry",
        max_samples: int = 4096,
        *,
        figures: bool = False,
        prog_bar: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        check_integer("every_n_steps", every_n_steps, least=1)
        check_integer("max_samples", max_samples, least=2)  # one pair
        if not prefix or not isinstance(prefix, str):
            raise ValueError(f"prefix must be a name such as 'geometry', got {prefix!r}")
        self.prefix = prefix
        self.strict = strict
        self.figures = figures
        self.prog_bar = prog_bar
        self.history: list[dict[str, float]] = []
        self.validation_history: list[dict[str, float]] = []
        self._taps = Taps(extract, module)
        self._samples = Samples(every_n_steps, max_samples)
        self._validation_samples = Samples(1, max_samples)
        chosen = build_metrics(DEFAULT_METRICS if metrics is None else metrics, max_samples)
        widest = WIDEST_BY_DEFAULT if metrics is None else None
        self._train = Measures(chosen, widest)
        self._validation = Measures(chosen, widest, lenient=True)
        self._collapsed = False
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Key in the checkpoint, the same in each Lightning namespace."""
        return f"hsplugin.GeometryMonitor[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: plain numbers and tensors."""
        return {
            "samples": self._samples.state_dict(),
            "history": [dict(row) for row in self.history],
            "validation_history": [dict(row) for row in self.validation_history],
            "collapsed": self._collapsed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint, which has the samples of rank zero only."""
        self.history = [dict(row) for row in state_dict["history"]]
        self.validation_history = [dict(row) for row in state_dict["validation_history"]]
        self._collapsed = state_dict["collapsed"]
        if rank() == 0:
            self._samples.load_state_dict(state_dict["samples"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier training; a checkpoint of this one is loaded later."""
        if stage == "fit" and trainer.current_epoch == 0:
            self.history.clear()
            self.validation_history.clear()
            self._collapsed = False

    @never_fatal
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the features once the module is complete."""
        self._taps.install(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        self._taps.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was if training fails, which skips the teardown."""
        self._taps.remove()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record every batch: branching here would compile a compiled module twice."""
        if batch_idx == 0:
            # A checkpoint written after an epoch's last batch leaves some.
            self._samples.clear()
        if self._taps.ready:
            self._taps.listen()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the features of every n-th batch; the others cost nothing."""
        try:
            if self._taps.ready and self._samples.wants(batch_idx):
                self._keep(trainer, pl_module, outputs, batch, batch_idx)
        finally:
            self._taps.stop()

    @never_fatal
    def _keep(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        views = self._taps.views(pl_module, outputs, batch)
        self._samples.add(batch_idx, views)
        for name, value in self._train.of_step(views).items():
            key = f"{self.prefix}/{name}_step"
            # Lightning passes the latest of these to the loggers when it next logs.
            pl_module.log(key, value, on_step=True, on_epoch=False, batch_size=1)

    @never_fatal
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the samples, log, draw, and start a new epoch."""
        try:
            device = _computing_device(pl_module)
            for views in self._samples:
                self._train.update(views.map(lambda tensor: tensor.to(device)))
            values = self._finish(pl_module, self._train, "")
            if values:
                self.history.append({"epoch": trainer.current_epoch, **values})
                self._warn_of_collapse(values)
                self._draw(trainer, self._samples, self.history, "")
        finally:
            self._samples.clear()
            self._train.reset()

    @never_fatal
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the features if there was no training before."""
        self._validation.reset()
        self._validation_samples.clear()
        if not self._taps.ready:
            self._taps.install(pl_module)

    @never_fatal
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record each batch but those of the sanity check."""
        if self._taps.ready and not trainer.sanity_checking:
            self._taps.listen()

    @never_fatal
    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch; a validation step without features causes no warning."""
        if not self._taps.ready or trainer.sanity_checking or dataloader_idx > 0:
            return
        try:
            views = self._taps.views(pl_module, outputs, batch)
        except RefusedError:
            return
        finally:
            self._taps.stop()
        if self.figures and self._validation_samples.wants(batch_idx):
            self._validation_samples.add(batch_idx, views)
        device = _computing_device(pl_module)
        self._validation.update(views.map(lambda tensor: tensor.to(device)))

    @never_fatal
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the values of the whole validation set, and draw a sample of it."""
        try:
            values = {}
            if not trainer.sanity_checking:
                values = self._finish(pl_module, self._validation, "val_")
            if values:
                self.validation_history.append({"epoch": trainer.current_epoch, **values})
                self._draw(trainer, self._validation_samples, self.validation_history, "val_")
        finally:
            self._validation_samples.clear()
            self._validation.reset()

    def _finish(self, pl_module: Any, measures: Measures, stage: str) -> dict[str, float]:
        """Compute over all ranks, log, and warn about what could not be computed."""
        values, problems = measures.compute(_computing_device(pl_module))
        for kind, problem in problems.items():
            if self.strict:
                raise ValueError(problem)
            self._warn_once(kind, f"{type(pl_module).__name__}: {problem}")
        for name, value in values.items():
            pl_module.log(
                f"{self.prefix}/{stage}{name}",
                value.float(),
                on_step=False,
                on_epoch=True,
                prog_bar=self.prog_bar,
                batch_size=1,
                # Already equal on all ranks; this tells Lightning so.
                sync_dist=True,
            )
        return {name: float(value) for name, value in values.items()}

    def _draw(
        self, trainer: Any, samples: Samples, history: list[dict[str, float]], stage: str
    ) -> None:
        if not self.figures:
            return
        try:
            from hsplugin.monitor.figures import show

            show(trainer, self.prefix, stage, samples.joined(), history)
        except Exception as error:
            if self.strict:
                raise
            self._warn_once("figure", f"no figure is drawn: {line(error)}")

    def _warn_of_collapse(self, values: Mapping[str, float]) -> None:
        reason = self._train.collapse(values)
        # The first epoch may show the untrained network; two in a row show a collapse.
        if reason and self._collapsed:
            self._warn_once("collapse", f"collapse: {reason}")
        self._collapsed = bool(reason)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{self.prefix} monitor: {message}", GeometryWarning, stacklevel=4)


def _computing_device(pl_module: Any) -> torch.device:
    """Where the metrics are computed: on the module's device, unless that has no float64."""
    device: torch.device = pl_module.device
    return torch.device("cpu") if device.type == "mps" else device
