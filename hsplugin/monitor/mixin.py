"""The monitor without a framework: hooks of a Lightning callback, and what they log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hsplugin.checks import check_integer
from hsplugin.monitor.guard import Guard
from hsplugin.monitor.measures import build_metrics
from hsplugin.monitor.representation import TEST, TRAINING, VALIDATION, Representation
from hsplugin.monitor.taps import Extract, Taps
from hsplugin.monitor.views import Pool
from hsplugin.potential.distributed import rank

if TYPE_CHECKING:
    from torchmetrics import Metric

DEFAULT_METRICS = ("alignment", "uniformity", "wasserstein_uniformity", "rankme", "knn")
# Of these, what goes without saying where a batch has no labels.
NEED_LABELS = ("knn",)


class GeometryMonitorMixin:
    """Lightning callback that measures the geometry of a method's features, and only measures.

    Training does not change: features are copied without gradient, no random state is touched, the
    host never waits for the device within a step, and the weights are bit-identical. An error in
    the monitor becomes one warning.

    **Training.** Every ``every_n_steps``-th batch of an epoch, starting with the first, is kept, up
    to ``max_samples`` rows spread evenly over the epoch. At the end of the epoch they give
    ``geometry/alignment``, ``geometry/uniformity``, ``geometry/uniformity_gap`` (to the lowest
    value attainable in that dimension), ``geometry/wasserstein_uniformity``, ``geometry/rankme``
    and, where batches have labels, ``geometry/knn``: over all ranks, for loggers, the progress bar,
    ``EarlyStopping`` and ``ModelCheckpoint(monitor="geometry/uniformity")``. Within the epoch
    ``geometry/alignment_step`` and ``geometry/uniformity_step`` show the latest batch kept on
    rank zero.

    **Validation and test.** If the validation step passes features, all of the first loader's are
    measured and logged as ``geometry/val_uniformity`` and so on; those of ``Trainer.test`` as
    ``geometry/test_uniformity``. A training step that returns None, which Lightning skips, counts
    as nothing.

    **Stopping and checkpoints.** Where validation runs more or less than once an epoch
    (``val_check_interval``, ``check_val_every_n_epoch``), Lightning's callbacks read the metrics at
    its end, before the epoch has training values. Use ``geometry/val_uniformity`` there, or keep
    ``geometry/uniformity`` with ``EarlyStopping(..., check_on_train_epoch_end=True)`` and
    ``ModelCheckpoint(..., save_on_train_epoch_end=True)``.

    Metrics of one set of features get the first view, or the only one with a gradient (a query, a
    prediction); alignment gets the first two views of a step.

    **Where the features come from.** The first that applies: ``extract``; ``module``; the
    ``"z"`` that the module's ``forward`` returns (solo-learn); the two inputs of a criterion
    (Lightly); the ``embedding`` that ``forward`` returns (stable-pretraining); a projection head;
    what prototypes score; a backbone. It is chosen at the first batch, said once through
    Lightning's logger, and kept to; :attr:`measured` tells it. A call with the rows of several
    views is taken to hold one view after the other, and what is said then says so; rows that
    alternate between views need ``extract``.
    Scores of prototypes, labels and reconstruction targets are not measured; if there is nothing
    else, that is said once, with the reason.

    Args:
        metrics: Names in :data:`hsplugin.metrics.METRICS`, or a mapping from name to
            ``torchmetrics.Metric``. Of other packages' metrics, an ``update(x)`` gets features,
            ``update(x, labels)`` also the labels of the batch, any other ``update(x, y)`` both
            views. Metrics over moments, asked for by name, are read off the Gram matrix of at most
            2048 rows where features have more than 2048 dimensions; those of a mapping are not.
        extract: ``extract(pl_module, outputs, batch)`` returning features (n, d), a pair of them
            or a dictionary with "x" and optionally "y" and "labels". Called after each training and
            validation step, in evaluation mode, without gradient, with random states restored.
        module: Name of the submodule whose output is measured, such as "projection_head". A
            submodule that returns a scalar is treated as a criterion: its inputs are measured.
            Several names, such as ("backbone", "projection_head"), are watched side by side, as
            ``geometry/backbone/uniformity`` and ``geometry/projection_head/uniformity``.
        every_n_steps: Measure every n-th training batch of an epoch.
        prefix: The part of each logged name before the slash. Two monitors need two prefixes.
        max_samples: Rows that a rank keeps of a training epoch at most, and that uniformity, which
            compares all pairs, uses of a validation epoch at most. Fewer of features so wide that
            all pairs would take long: 2048 of 8192 dimensions, 724 of 65536.
        labels: Key or position of the labels in a batch, such as "label" or 1. If None they are
            looked for under the usual keys, and else are the last integers, one a sample.
        pool: How outputs that are tokens (n, l, d) become features: "mean", or "cls" for the first
            token. If None they are not measured.
        figures: Draw features of rank zero, their spectrum, positive distances and the trajectory
            so far at the end of each epoch: to
            ``<log directory>/<prefix>/epoch-0000-step-00000100.png``, and to the loggers that take
            pictures: TensorBoard, W&B, MLflow, Comet, Neptune, Aim and any
            with a ``log_image``. For a validation as ``val_figure`` and
            ``val-epoch-0000-step-00000100.png``, for a test likewise.
        prog_bar: Show the epoch's values in the progress bar.
        strict: Raise errors instead of warning.

    Attributes:
        history: The values of each training epoch so far.
        validation_history: Those of each validation.
        test_history: Those of each test.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, a metric is unknown, or both ``extract`` and
            ``module`` are given.
    """

    def __init__(
        self,
        metrics: Sequence[str] | Mapping[str, Metric] | None = None,
        extract: Extract | None = None,
        module: str | Sequence[str] | None = None,
        every_n_steps: int = 50,
        prefix: str = "geometry",
        max_samples: int = 4096,
        *,
        labels: str | int | None = None,
        pool: Pool | None = None,
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
        self.prog_bar = prog_bar
        self.history: list[dict[str, float]] = []
        self.validation_history: list[dict[str, float]] = []
        self.test_history: list[dict[str, float]] = []
        chosen = build_metrics(DEFAULT_METRICS if metrics is None else metrics, max_samples)
        quiet = NEED_LABELS if metrics is None else ()
        wide_rows = None if isinstance(metrics, Mapping) else max_samples
        guard = Guard(strict)
        self._watched = {
            name: Representation(
                f"{prefix}/{name}" if name else prefix,
                Taps(extract, path, labels, pool),
                guard,
                chosen,
                quiet,
                wide_rows,
                every_n_steps,
                max_samples,
                figures,
            )
            for name, path in _paths(module).items()
        }

    @property
    def state_key(self) -> str:
        """Key in the checkpoint, the same in each Lightning namespace."""
        return f"hsplugin.GeometryMonitor[{self.prefix}]"

    @property
    def measured(self) -> str:
        """What is measured, in words; nothing before the first batch that is."""
        return "; ".join(filter(None, (one.taps.measured for one in self._watched.values())))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: plain numbers and tensors."""
        return {
            "watched": {name: one.state_dict() for name, one in self._watched.items()},
            "history": [dict(row) for row in self.history],
            "validation_history": [dict(row) for row in self.validation_history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint, which has the samples of rank zero only."""
        self.history = [dict(row) for row in state_dict["history"]]
        self.validation_history = [dict(row) for row in state_dict["validation_history"]]
        # Earlier checkpoints hold what is known of their only representation beside the history.
        watched = state_dict.get("watched", {"": state_dict})
        for name, one in self._watched.items():
            # What is watched only since then starts empty.
            if name in watched:
                one.load_state_dict(watched[name], samples=rank() == 0)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier training; a checkpoint of this one is loaded later."""
        if stage == "fit" and trainer.current_epoch == 0:
            self.history.clear()
            self.validation_history.clear()
            for one in self._watched.values():
                one.collapsed = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the features once the module is complete."""
        for one in self._watched.values():
            one.install(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        for one in self._watched.values():
            one.taps.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was if training fails, which skips the teardown."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record every batch: branching here would compile a compiled module twice."""
        for one in self._watched.values():
            if batch_idx == 0:
                # A checkpoint written after an epoch's last batch leaves some.
                one.clear(TRAINING)
            one.listen()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the features of every n-th batch; the others cost nothing."""
        for one in self._watched.values():
            one.keep(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the samples, log, draw, and start a new epoch."""
        self._end(trainer, pl_module, TRAINING, self.history)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the features if there was no training before."""
        self._start(pl_module, VALIDATION)

    def on_validation_batch_start(self, *_: Any, dataloader_idx: int = 0) -> None:
        """Record every batch, as in training."""
        self._listen()

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
        self._evaluate(trainer, dataloader_idx, pl_module, VALIDATION, outputs, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the values of the whole validation set, and draw a sample of it."""
        if not trainer.sanity_checking:
            self._end(trainer, pl_module, VALIDATION, self.validation_history)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the features."""
        self._start(pl_module, TEST)

    def on_test_batch_start(self, *_: Any, dataloader_idx: int = 0) -> None:
        """Record every batch."""
        self._listen()

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch; a test step without features causes no warning."""
        self._evaluate(trainer, dataloader_idx, pl_module, TEST, outputs, batch, batch_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the values of the whole test set, and draw a sample of it."""
        self._end(trainer, pl_module, TEST, self.test_history)

    def _start(self, pl_module: Any, stage: str) -> None:
        for one in self._watched.values():
            one.clear(stage)
            if not one.taps.ready:
                one.install(pl_module)

    def _listen(self) -> None:
        for one in self._watched.values():
            one.listen()

    def _evaluate(self, trainer: Any, dataloader_idx: int, *step: Any) -> None:
        """Measure a batch of the first data loader."""
        for one in self._watched.values():
            if trainer.sanity_checking or dataloader_idx > 0:
                one.taps.stop()
            else:
                one.evaluate(trainer, *step)

    def _end(
        self, trainer: Any, pl_module: Any, stage: str, history: list[dict[str, float]]
    ) -> None:
        """Measure and draw each representation; one epoch is one row of the history."""
        found = {
            name: one.finish(pl_module, stage, prog_bar=self.prog_bar)
            for name, one in self._watched.items()
        }
        prefixes = {name: f"{name}/" if name else "" for name in found}
        row = {f"{prefixes[n]}{key}": v for n, values in found.items() for key, v in values.items()}
        if row:
            history.append({"epoch": trainer.current_epoch, **row})
        for name, one in self._watched.items():
            if found[name]:
                if stage == TRAINING:
                    one.warn_of_collapse(found[name])
                start = prefixes[name]
                own = [
                    {key.removeprefix(start): v for key, v in row.items() if key.startswith(start)}
                    for row in history
                ]
                one.draw(trainer, stage, own)
            one.clear(stage)


def _paths(module: str | Sequence[str] | None) -> dict[str, str | None]:
    """The submodules to watch, by their part of the logged names; the only one has none."""
    if module is None or isinstance(module, str):
        return {"": module}
    names = list(module) if isinstance(module, Sequence) else []
    if not names or not all(name and isinstance(name, str) for name in names):
        raise TypeError(
            "module must be the name of a submodule, or a list of them such as "
            f"['backbone', 'projection_head'], got {module!r}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"module names a submodule twice: {names}")
    return {name: name for name in names}
