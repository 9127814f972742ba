"""What every metric shares: counting rows, deferred refusal, synchronisation, plotting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from hsplugin.plots import figure


def gather_padded(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather a state from all ranks, filled up with zeros to one shape.

    A rank that has seen no features yet does not know their dimension, and reservoirs differ in
    length; in every state here zeros stand for nothing seen.
    """
    gathered = gather_all_tensors(state, group)
    shape = [max(sizes) for sizes in zip(*(part.shape for part in gathered), strict=True)]
    return [
        pad(part, [n for have, want in zip(part.shape[::-1], shape[::-1], strict=True)
                   for n in (0, want - have)])
        for part in gathered
    ]  # fmt: skip


class GeometryMetric(Metric):
    """Base of the metrics: ``update`` only looks at shapes, ``compute`` at values.

    Features are detached from their graph: to train on a quantity, take the function or a loss.
    Results are float64 scalars unless said otherwise.
    """

    is_differentiable = False
    # The states take their shape from the first features, which torchmetrics' merge of a batch's
    # state into the running one would not allow; so forward() updates twice.
    full_state_update = True
    rows: Tensor
    nonfinite_rows: Tensor

    _argument = "features"
    _fewest_rows = 2

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", gather_padded)
        super().__init__(**kwargs)
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nonfinite_rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # A half-precision module that holds the metric moves it, but must not round its sums.
        return super()._apply(lambda state: state.to(fn(state).device), *args, **kwargs)

    def _set_apart(self, *options: float) -> None:
        """Keep a MetricCollection from merging metrics that differ in these options.

        It merges those whose states are equal after the first update, which may be by chance.
        """
        state = torch.tensor(options, dtype=torch.float64)
        self.add_state("options", state, dist_reduce_fx="max")

    def _count(self, features: Tensor) -> None:
        finite = torch.isfinite(features.detach()).flatten(1).all(dim=1)
        self.nonfinite_rows = self.nonfinite_rows + (~finite).sum()
        self.rows = self.rows + len(features)

    def _check_seen(self) -> None:
        rows, nonfinite = int(self.rows), int(self.nonfinite_rows)
        if rows < self._fewest_rows:
            self._refuse(
                f"{self._argument}: {type(self).__name__} has seen {rows} row(s) but needs at "
                f"least {self._fewest_rows}; call update() with more before compute()"
            )
        if nonfinite:
            self._refuse(
                f"{self._argument}: {nonfinite} of {rows} rows that {type(self).__name__} has "
                f"seen hold NaN or infinite values; mend them and call reset()"
            )

    def _refuse(self, message: str) -> None:
        # torchmetrics would otherwise leave this rank with the state of all ranks.
        if self._is_synced and self._should_unsync:
            self.unsync()
        raise ValueError(message)

    def plot(
        self, val: Tensor | float | Sequence[Tensor | float] | None = None, ax: Any = None
    ) -> tuple[Any, Any]:
        """Draw one value as a point or several, such as one an epoch, as a line.

        Args:
            val: What ``compute`` or ``forward`` returned, or a sequence of it; computed if None.
            ax: The matplotlib axes to draw in; a new figure if None.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: If matplotlib is missing.
        """
        if val is None:
            val = self.compute()
        values = [float(v) for v in (val if isinstance(val, Sequence) else [val])]
        ax = figure(1)[1][0] if ax is None else ax
        ax.plot(range(len(values)), values, marker="o", label=type(self).__name__)
        if len(values) == 1:
            ax.set_xticks([])
        else:
            ax.set_xlabel("step")
        ax.set_ylabel(type(self).__name__)
        ax.grid(True, alpha=0.3)
        return ax.get_figure(), ax
