"""Geometry of training batches, as a callback of sentence-transformers' trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "hsplugin_sentence_transformers needs sentence-transformers: "
        "pip install 'hsplugin[sentence-transformers]'"
    ) from error

from hsplugin.functional import unit_rows
from hsplugin.metrics import functional


class GeometryCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the geometry of training batches, with any loss; never changes training.

    Whenever the trainer logs its loss, logs ``geometry/alignment`` of anchors and positives and
    ``geometry/uniformity`` of anchors, of the last batch that the first device had. A loss of one
    column gets uniformity alone. Losses that embed a batch piece by piece (``Cached...``) or
    several times (``MatryoshkaLoss``) are refused with a warning; use :class:`GeometryEvaluator`
    with those.

    Args:
        trainer: The trainer that this callback is added to, through which it logs.
        prefix: The part of each logged name before the slash.

    Example::

        trainer.add_callback(GeometryCallback(trainer))
    """

    def __init__(self, trainer: Any, prefix: str = "geometry") -> None:
        self.trainer = trainer
        self.prefix = prefix
        self._handles: list[Any] = []
        self._columns = 0
        self._embeddings: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hook the model and the losses."""
        self.on_train_end(args, state, control)  # a training before may have failed
        losses = self.trainer.loss
        self._handles.append(kwargs["model"].register_forward_hook(self._keep))
        for loss in losses.values() if isinstance(losses, dict) else [losses]:
            self._handles.append(loss.register_forward_pre_hook(self._start))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave model and losses as they were."""
        self._embeddings.clear()
        while self._handles:
            self._handles.pop().remove()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last batch where the trainer is about to log."""
        if not control.should_log:
            return
        try:
            values = self._measure()
        except ValueError as error:
            warnings.warn(f"{self.prefix} callback: {error}", stacklevel=2)
        else:
            self.trainer.log({f"{self.prefix}/{name}": v for name, v in values.items()})
            control.should_log = True  # logging resets it, and the loss would go missing

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As :meth:`on_step_end`, where the trainer logs once an epoch."""
        self.on_step_end(args, state, control)

    def _start(self, loss: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._embeddings.clear()
        self._columns = len(arguments[0])

    def _keep(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        embeddings = output.get("sentence_embedding") if isinstance(output, Mapping) else None
        if model.training and isinstance(embeddings, Tensor):
            self._embeddings.append(embeddings.detach())

    def _measure(self) -> dict[str, float]:
        rows = [len(embeddings) for embeddings in self._embeddings]
        # Columns after the first may share one pass through the model.
        if not rows or sum(rows) != self._columns * rows[0]:
            raise ValueError(
                f"the loss has embedded {self._columns} column(s) in passes of {rows} rows, so "
                "that views cannot be told apart; measure with GeometryEvaluator"
            )
        anchors = unit_rows(self._embeddings[0])
        values = {"uniformity": float(functional.uniformity(anchors))}
        if self._columns > 1:
            positives = unit_rows(self._embeddings[1][: rows[0]])
            values["alignment"] = float(functional.alignment(anchors, positives))
        return values
