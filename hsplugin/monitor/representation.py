"""One watched representation: finds its features, keeps a sample of them, measures and logs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hsplugin.checks import with_float64
from hsplugin.monitor.guard import Guard, line
from hsplugin.monitor.measures import Measures
from hsplugin.monitor.samples import Samples
from hsplugin.monitor.taps import Taps
from hsplugin.monitor.views import LabelsError, RefusedError, Views, seem_to_alternate

if TYPE_CHECKING:
    from torchmetrics import Metric

# What the names of their values begin with.
TRAINING, VALIDATION, TEST = "", "val_", "test_"


class Representation:
    """One watched representation, in training and in evaluations.

    Args:
        name: What its values are logged under, such as "geometry" or "geometry/backbone".
        taps: Find its features.
        guard: Turns errors into warnings.
        metrics: Metrics by name; copied.
        quiet: As for :class:`Measures`, in training; in evaluations it holds of all.
        wide_rows: As for :class:`Measures`.
        every: Take every n-th training batch.
        max_samples: Rows that are kept of a stage at most.
        draws: Whether a sample of evaluations is kept to draw it.
    """

    def __init__(
        self,
        name: str,
        taps: Taps,
        guard: Guard,
        metrics: Mapping[str, Metric],
        quiet: Collection[str],
        wide_rows: int | None,
        every: int,
        max_samples: int,
        draws: bool,
    ) -> None:
        self.name = name
        self.taps = taps
        self.collapsed = False
        self._guard = guard
        self._draws = draws
        self.samples = {TRAINING: Samples(every, max_samples)}
        self.measures = {TRAINING: Measures(metrics, quiet, wide_rows)}
        for stage in (VALIDATION, TEST):
            self.samples[stage] = Samples(1, max_samples)
            self.measures[stage] = Measures(metrics, tuple(metrics), wide_rows)
        self._told = ""
        self._refused: RefusedError | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: plain numbers and tensors."""
        return {"samples": self.samples[TRAINING].state_dict(), "collapsed": self.collapsed}

    def load_state_dict(self, state: Mapping[str, Any], *, samples: bool) -> None:
        """Resume from :meth:`state_dict`, with the samples or without."""
        self.collapsed = state["collapsed"]
        if samples:
            self.samples[TRAINING].load_state_dict(state["samples"])

    def install(self, pl_module: Any) -> None:
        """Find the features of a module."""
        with self._guarded(pl_module):
            self.taps.install(pl_module)

    def listen(self) -> None:
        """Record the step that begins."""
        if self.taps.ready:
            self.taps.listen()

    def keep(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Keep the features of every n-th training batch, and log what is shown of one batch."""
        # With automatic optimisation Lightning skips a step that returns nothing.
        skipped = not outputs and pl_module.automatic_optimization
        try:
            if self.taps.ready and not skipped and self.samples[TRAINING].wants(index):
                with self._guarded(pl_module):
                    self._keep(trainer, pl_module, outputs, batch, index)
        finally:
            self.taps.stop()

    def _keep(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        try:
            views = self._views(trainer, pl_module, outputs, batch)
        except RefusedError as error:
            if outputs:
                raise
            # With manual optimisation it may have been skipped; the end of the epoch tells.
            self._refused = error
            return
        self.samples[TRAINING].add(index, views)
        for name, value in self.measures[TRAINING].of_step(views).items():
            # Lightning passes the latest of these to the loggers when it next logs.
            key = f"{self.name}/{name}_step"
            pl_module.log(key, value, on_step=True, on_epoch=False, batch_size=1)

    def evaluate(
        self, trainer: Any, pl_module: Any, stage: str, outputs: Any, batch: Any, index: int
    ) -> None:
        """Measure a batch of an evaluation; one without features causes no warning.

        One without the labels that were asked for does.
        """
        if not self.taps.ready:
            return
        with self._guarded(pl_module):
            try:
                views = self._views(trainer, pl_module, outputs, batch)
            except LabelsError:
                raise
            except RefusedError:
                return
            finally:
                self.taps.stop()
            if self._draws and self.samples[stage].wants(index):
                self.samples[stage].add(index, views)
            self._update(pl_module, stage, views)

    def finish(self, pl_module: Any, stage: str, *, prog_bar: bool) -> dict[str, float]:
        """Measure, log over all ranks, and warn about what could not be computed."""
        with self._guarded(pl_module):
            if stage == TRAINING:
                # Guarded by itself: whatever happens here, the other ranks wait for this one below.
                with self._guarded(pl_module):
                    self._update_from_samples(pl_module)
            values, problems = self.measures[stage].compute(computing_device(pl_module))
            for kind, problem in problems.items():
                if self._guard.strict:
                    raise ValueError(problem)
                self._warn(kind, f"{type(pl_module).__name__}: {problem}")
            for name, value in values.items():
                pl_module.log(
                    f"{self.name}/{stage}{name}",
                    value.float(),
                    on_step=False,
                    on_epoch=True,
                    prog_bar=prog_bar,
                    batch_size=1,
                    # Already equal on all ranks; this tells Lightning so.
                    sync_dist=True,
                )
            return {name: float(value) for name, value in values.items()}
        return {}

    def clear(self, stage: str) -> None:
        """Forget the samples and the measures of a stage."""
        self.samples[stage].clear()
        self.measures[stage].reset()

    def draw(self, trainer: Any, stage: str, history: Sequence[Mapping[str, float]]) -> None:
        """Draw the samples of a stage and its history, if that is wanted."""
        if not self._draws:
            return
        try:
            from hsplugin.monitor.figures import show

            show(trainer, self.name, stage, self.samples[stage].joined(), history)
        except Exception as error:
            if self._guard.strict:
                raise
            self._warn("figure", f"no figure is drawn: {line(error)}")

    def warn_of_collapse(self, values: Mapping[str, float]) -> None:
        """Warn if training values show a collapse twice in a row."""
        reason = self.measures[TRAINING].collapse(values)
        # The first epoch may show the untrained network; two in a row show a collapse.
        if reason and self.collapsed:
            self._warn("collapse", f"collapse: {reason}")
        self.collapsed = bool(reason)

    def _views(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any) -> Views:
        views = self.taps.views(pl_module, outputs, batch)
        if self._told != self.taps.measured:
            self._told = self.taps.measured
            said = f"{self._told} of {_name(pl_module)}{self.taps.split}"
            _tell(trainer, f"{self.name} monitor: measures {said}")
        return views

    def _update_from_samples(self, pl_module: Any) -> None:
        samples = self.samples[TRAINING]
        refused, self._refused = self._refused, None
        if refused is not None and not len(samples):
            raise refused
        for views in samples:
            self._update(pl_module, TRAINING, views)
        if self.taps.parts > 1 and len(samples) and seem_to_alternate(samples, self.taps.parts):
            self._warn(
                "views",
                f"{self.taps.measured} was taken for {self.taps.parts} views one after the other, "
                "but its rows seem to alternate between them; return two views with extract=...",
            )

    def _update(self, pl_module: Any, stage: str, views: Views) -> None:
        device = computing_device(pl_module)
        self.measures[stage].update(views.map(lambda tensor: tensor.to(device)))

    def _guarded(self, pl_module: Any) -> Any:
        return self._guard(self.name, _name(pl_module))

    def _warn(self, kind: str, message: str) -> None:
        self._guard.warn_once(self.name, kind, message)


def computing_device(pl_module: Any) -> torch.device:
    """Where the metrics are computed: on the module's device, unless that has no float64."""
    return with_float64(pl_module.device)


def _name(pl_module: Any) -> str:
    return type(pl_module).__name__


def _tell(trainer: Any, message: str) -> None:
    """Inform through Lightning's own logger, where its users look and which they can silence."""
    if not trainer.is_global_zero:
        return
    spaces = [kind.__module__ for kind in type(trainer).__mro__ if kind.__name__ == "Trainer"]
    space = "lightning.pytorch" if spaces[-1:] and "lightning.pytorch" in spaces[-1] else ""
    logging.getLogger(f"{space or 'pytorch_lightning'}.hsplugin").info(message)
