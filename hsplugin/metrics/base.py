"""Base of the metrics: declarations, checks, states that merge, and the value of one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_max, dim_zero_sum
from torchmetrics.utilities.distributed import gather_all_tensors

from hsplugin.checks import with_float64
from hsplugin.metrics.checks import check_finite
from hsplugin.metrics.directions import largest_entries
from hsplugin.metrics.sampling import Jackknifed

States = Mapping[str, Tensor]
# torchmetrics' reductions of a stack, as functions of two; our own take all parts at once.
_PAIRWISE: Mapping[Any, Callable[[Tensor, Tensor], Tensor]] = {
    dim_zero_sum: torch.add,
    dim_zero_max: torch.maximum,
}


class GeometryMetric(Metric):
    """Base of the metrics: ``update`` looks only at shapes, ``compute`` also at values.

    A subclass declares what the rest of the package asks of a metric, checks its inputs in
    ``_check``, turns a batch into states in ``_measure``, and reads its value off the states in
    ``_value``. From these three come streaming, merging over ranks, the value of a single batch
    (:meth:`of`, which the function of the metric's name calls) and the jackknife.

    Features are detached in ``update``; :meth:`of` is differentiable where the formula is. Results
    are float64 scalars unless said otherwise.

    Attributes:
        name: How logs, tables and options call it.
        title: How a heading calls it.
        takes: What ``update`` takes, in order: "x" (features), "y" (their positives), "views"
            (both, stacked) or "labels".
        optional: What it takes besides if there is any.
        settings: Arguments of its constructor that :meth:`build` passes on.
        required: Those of them that have no default.
        variants: Further forms that a full report lists: suffix of the name to settings.
        needs_matrix: Whether it takes time and memory for a d x d matrix.
        each_step: Whether a monitor shows it for single batches too.
        note: How to read the value, in a few words; may name ``{dim}``, or
            ``{most}`` for the rank that so many rows can have.
        single_eigenvalues: Whether it depends on single eigenvalues of a spectrum and not on all
            alike. Where eigenvalues are equal, its bias falls with 1 / sqrt(N) and not with 1 / N.
        may_be_nan: Whether NaN is its value where there is nothing to measure.
        least_rows: Rows below which it has no value.
        least_dim: Dimensions below which it has no value.
        measured_rows: How many rows, of all ranks, the latest ``compute`` was of.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("x",)
    optional: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}
    needs_matrix: ClassVar[bool] = False
    each_step: ClassVar[bool] = False
    note: str = ""
    single_eigenvalues: ClassVar[bool] = False
    may_be_nan: ClassVar[bool] = False
    least_rows: ClassVar[int] = 2
    least_dim: int = 1
    measured_rows: int = 0

    is_differentiable = False
    full_state_update = False
    rows: Tensor
    nonfinite_rows: Tensor

    # In forward, what was seen before the batch, as torchmetrics then resets the states.
    _before: States | None = None
    _check: Callable[..., None]
    """Refuse what has a wrong type or shape, and fewer rows than ``min_rows``."""
    _measure: Callable[..., dict[str, Tensor]]
    """The states of a batch alone."""
    _value: Callable[[Any], Tensor]
    """The metric, from what :meth:`_shared` made of the states."""

    # What messages call the inputs.
    _arguments: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", gather_padded)
        super().__init__(**kwargs)
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nonfinite_rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @classmethod
    def build(cls, **settings: Any) -> GeometryMetric:
        """Make the metric with those of some settings that it takes.

        Raises:
            TypeError: If a setting that it needs is not among them, or one has the wrong type.
            ValueError: If a setting is out of range.
        """
        return cls(**{name: settings[name] for name in cls.settings if name in settings})

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """The smallest and the largest possible value for these numbers of rows and dimensions."""
        return 0.0, float("inf")

    def collapse(self, value: float, rows: int, dim: int) -> str:
        """Why the value of so many rows shows a collapse of the features, or nothing."""
        return ""

    def describe(self, rows: int, dim: int) -> str:
        """How to read the value of so many rows, in a few words."""
        return self.note.format(dim=dim, most=min(rows, dim))

    def extras(self) -> dict[str, float]:
        """Further numbers after ``compute``, by the suffix of the name under which to log them."""
        return {}

    def of(self, *inputs: Tensor, finite: bool = True) -> Tensor:
        """The value of these inputs alone, without touching what was seen; differentiable.

        Args:
            inputs: What ``update`` takes.
            finite: Whether to refuse NaN and infinite values, which reads them on the host.

        Raises:
            TypeError: As ``update``.
            ValueError: As ``update``, and if there are too few rows or values are not finite.
            OverflowError: As ``compute``.
        """
        self._check(*inputs, min_rows=self.least_rows)
        inputs = tuple(x.to(with_float64(x.device)) for x in inputs)
        if not finite:
            return self._evaluate(*inputs)
        for name, features in zip(self._arguments, inputs, strict=False):
            check_finite(name, features)
        return self._representable(self._evaluate(*inputs))

    def compute(self) -> Any:
        """Return the metric of everything seen.

        Raises:
            ValueError: If fewer rows were seen than it takes, or features were NaN or infinite.
            OverflowError: If the metric depends on the features' scale, and that is so large that
                floating point cannot hold it.
        """
        try:
            if self._before is not None and int(self.rows) < self.least_rows:
                return self._undefined()
            self._check_seen()
            self.measured_rows = int(self.rows)
            return self._representable(self._value(self._shared(self._states())))
        except Exception:
            # torchmetrics would leave this rank with the states of all ranks.
            if self._is_synced and self._should_unsync:
                self.unsync()
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own value, NaN if it has too few rows for one.

        A batch that is refused leaves the metric as it was.

        Raises:
            TypeError: As ``update``.
            ValueError: As ``update`` and ``compute``.
        """
        self._before, count = self._states(), self._update_count
        try:
            return super().forward(*args, **kwargs)
        except Exception:
            for name, state in self._before.items():
                setattr(self, name, state)
            self._update_count = count
            self._computed = None
            self._is_synced, self._should_unsync = False, True
            self._to_sync = self.sync_on_compute
            raise
        finally:
            self._before = None

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, or several such as one an epoch, by torchmetrics' own ``plot``.

        Args:
            val: What ``compute`` or ``forward`` returned, or a sequence of it; computed if None.
            ax: The matplotlib axes to draw in; a new figure if None.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: If matplotlib is missing.
        """
        return self._plot(val, ax)

    def _shared(self, states: States) -> Any:
        """What all metrics of a family read their values off; computed once for all of them."""
        return states

    def _family(self) -> tuple[Any, ...]:
        """Metrics of equal families have equal states."""
        return (id(self),)

    def _dim(self, states: States) -> int:
        """Dimension of the features in the states; 0 before there are any, or if unknown."""
        return 0

    def _undefined(self) -> Tensor:
        return self.rows.new_full((), float("nan"), dtype=torch.float64)

    def _evaluate(self, *inputs: Any) -> Tensor:
        return self._value(self._shared(self._measure(*inputs)))

    def _add(self, *inputs: Any) -> None:
        """What every ``update`` does."""
        self._check(*inputs)
        batch = self._measure(
            *(x if x is None else x.detach().to(with_float64(x.device)) for x in inputs)
        )
        for name, state in self._merge([self._states(), batch]).items():
            setattr(self, name, state)

    def _states(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._defaults}

    def _merge(self, parts: Sequence[States]) -> dict[str, Tensor]:
        """The states of all parts together, by the reductions that merge those of ranks."""
        self._check_dims(parts)
        merged = {}
        reductions: Mapping[str, Any] = self._reductions
        for name, reduction in reductions.items():
            own = [part[name] for part in parts if name in part]
            pairwise = _PAIRWISE.get(reduction)
            merged[name] = reduce(pairwise, _padded(own)) if pairwise else reduction(own)
        return merged

    def _check_dims(self, parts: Iterable[States]) -> None:
        dims = [dim for dim in map(self._dim, parts) if dim]
        if len(set(dims)) > 1:
            raise ValueError(
                f"features have dimension {dims[-1]}, but {dims[0]} in earlier calls; "
                f"call reset() before measuring another representation"
            )

    def _reduce_states(self, incoming_state: States) -> None:
        """What torchmetrics calls in ``forward``, ``merge_state`` and ``Running``."""
        parts = [self._states(), incoming_state]
        # In forward the incoming state is the earlier one.
        for name, state in self._merge(parts if self._before is None else parts[::-1]).items():
            setattr(self, name, state)

    def _split(self, groups: int) -> list[GeometryMetric]:
        """Empty copies, one for each part of a sample that is dealt to groups."""
        return [copy.deepcopy(self) for _ in range(groups)]

    def _jackknife(
        self, whole: States, parts: Sequence[GeometryMetric], family: Mapping[str, GeometryMetric]
    ) -> dict[str, Jackknifed] | None:
        """Estimates of the family's metrics that take less than the general way, if there are any.

        Args:
            whole: The states of all rows.
            parts: Metrics that have seen a part of the rows each.
            family: The metrics by name.
        """
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # A half-precision module that holds the metric moves it, but must not round its sums, and
        # they stay on the CPU where a device lacks float64.
        def moved(state: Tensor) -> Tensor:
            there = fn(torch.empty(0, dtype=torch.float32, device=state.device))
            return state.to(with_float64(there.device))

        return super()._apply(moved, *args, **kwargs)

    def _forbid_merging(self, *options: float) -> None:
        """Keep a MetricCollection from merging metrics that differ in these options.

        It merges those whose states are equal after the first update, which may be by chance.
        """
        state = torch.tensor(options, dtype=torch.float64)
        self.add_state("options", state, dist_reduce_fx="max")

    def _count(self, features: Tensor) -> dict[str, Tensor]:
        """The states that every metric has."""
        finite = torch.isfinite(largest_entries(features.detach().flatten(1)))
        rows = torch.full((), len(features), dtype=torch.int64, device=features.device)
        return {"rows": rows, "nonfinite_rows": (~finite).sum()}

    def _representable(self, value: Tensor) -> Tensor:
        if not torch.isfinite(value.detach()) and not (value.isnan() and self.may_be_nan):
            raise OverflowError(
                f"{' or '.join(self._arguments)}: {type(self).__name__} of features this large is "
                f"beyond {value.dtype}; divide them by a constant, or scale rows to unit length"
            )
        return value

    def _check_seen(self) -> None:
        rows, nonfinite = int(self.rows), int(self.nonfinite_rows)
        name = " or ".join(self._arguments)
        if rows < self.least_rows:
            raise ValueError(
                f"{name}: {type(self).__name__} has seen {rows} row(s) but needs at "
                f"least {self.least_rows}; call update() with more before compute()"
            )
        if nonfinite:
            raise ValueError(
                f"{name}: {nonfinite} of {rows} rows that {type(self).__name__} has "
                f"seen hold NaN or infinite values; correct them and call reset()"
            )


def gather_padded(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather a state from all ranks, filled up with zeros to one shape."""
    return _padded(gather_all_tensors(state, group))


def _padded(states: Sequence[Tensor]) -> list[Tensor]:
    """States in one shape: in every state here, zeros stand for nothing seen.

    A metric that has seen no features does not know their dimension yet, and samples differ in
    length.
    """
    shape = [max(sizes) for sizes in zip(*(state.shape for state in states), strict=True)]
    return [
        state
        if list(state.shape) == shape
        else pad(state, [n for have, want in zip(state.shape[::-1], shape[::-1], strict=True)
                         for n in (0, want - have)])
        for state in states
    ]  # fmt: skip
