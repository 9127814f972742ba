"""The features of one batch, and what may be taken for features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hsplugin.functional import unit_rows

Pool = Literal["mean", "cls"]

# Where outputs that are dictionaries or classes hold one vector a sample.
OUTPUT_KEYS = ("embedding", "embeddings", "pooler_output", "feats", "features")


class RefusedError(ValueError):
    """The tapped tensors cannot be measured; the message says why and what to do."""


class LabelsError(RefusedError):
    """The labels are not where the user said."""


@dataclass(frozen=True)
class Unkept:
    """Stands for an output that is not kept."""

    what: str


@dataclass(frozen=True)
class Views:
    """Features of one batch: ``x`` (n, d), its positives ``y`` (n, d) and ``labels`` (n,)."""

    x: Tensor
    y: Tensor | None = None
    labels: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Views:
        """Apply a function to each tensor."""
        y = None if self.y is None else change(self.y)
        labels = None if self.labels is None else change(self.labels)
        return Views(change(self.x), y, labels)

    def finite(self) -> Views:
        """The rows without NaN or infinity."""
        finite = self.x.isfinite().all(dim=1)
        if self.y is not None:
            finite &= self.y.isfinite().all(dim=1)
        return self.map(lambda tensor: tensor[finite])


def is_features(value: Any) -> bool:
    """Whether a value is a floating (n, d) tensor."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2


def pooled(output: Any, pool: Pool | None = None) -> Any:
    """An output with one vector a sample where it has them, else the output as it is.

    Maps of one pixel are flattened. With ``pool``, tokens (n, l, d) become their mean or the first
    of them, and maps (n, d, h, w) their mean.
    """
    if not isinstance(output, Tensor) or output.dim() < 3 or not output.is_floating_point():
        return output
    if output.is_nested:  # its samples differ in length
        return output
    if output.shape[2:].numel() == 1:
        return output.flatten(1)
    if pool == "cls" and output.dim() == 3:
        return output[:, 0]
    if pool == "mean" and output.dim() in (3, 4):
        return output.mean(1) if output.dim() == 3 else output.mean((2, 3))
    return output


def vectors(output: Any) -> Any:
    """The tensor of an output that may be a tuple, a dictionary or a class, else the output."""
    if isinstance(output, Mapping):
        found = [output[key] for key in OUTPUT_KEYS if isinstance(output.get(key), Tensor)]
    elif isinstance(output, (tuple, list)):
        found = [part for part in output if isinstance(part, Tensor)]
    elif isinstance(output, Tensor):
        return output
    else:
        found = [getattr(output, key, None) for key in OUTPUT_KEYS]
        found = [value for value in found if isinstance(value, Tensor)]
    flat = [value for value in found if is_features(pooled(value))]
    return (flat or found or [output])[0]


def embedding_of(output: Any) -> Any:
    """What an output, a dictionary or a class, calls its embedding; None if it has none."""
    if isinstance(output, Mapping):
        return output.get("embedding")
    return None if isinstance(output, Tensor) else getattr(output, "embedding", None)


def paired(outputs: Sequence[Any], what: str, size: int | None = None, most: int = 0) -> Views:
    """The outputs of a module's calls as views: those of its first two calls.

    One call with the rows of several batches holds the views one after the other, and is split.

    Args:
        outputs: One output a call, in order.
        what: What messages call them.
        size: Samples of the batch, if known.
        most: Views that one call may hold.

    Raises:
        RefusedError: If the first output is no floating (n, d) tensor.
    """
    if not is_features(outputs[0]):
        raise RefusedError(f"{what} is {describe(outputs[0])}, not a floating (n, d) tensor")
    x = outputs[0]
    if size and len(x) > size and len(x) % size == 0 and len(x) // size <= most:
        x, y, *_ = x.split(size)
        return Views(x, y)
    if len(outputs) > 1 and is_features(outputs[1]) and outputs[1].shape == x.shape:
        return trained_first(x, outputs[1])
    return Views(x)


def seem_to_alternate(batches: Iterable[Views], parts: int) -> bool:
    """Whether rows that were split one view after the other look as if they alternated.

    Then neighbours within ``x`` are views of one sample but for every ``parts``-th pair of them,
    clearly closer to each other than these and than ``x`` to ``y``.
    """
    same, others, taken = [], [], []
    for views in batches:
        sides = (views.x, views.x if views.y is None else views.y)
        x, y = (unit_rows(side.float()) for side in sides)
        apart = (x[1:] - x[:-1]).square().sum(1)
        last = torch.arange(1, len(x), device=x.device) % parts == 0
        same.append(apart[~last])
        others.append(apart[last])
        taken.append((x - y).square().sum(1))
    near, far, pairs = torch.cat(same), torch.cat(others), torch.cat(taken)
    if min(len(near), len(far)) < 2:
        return False
    error = (near.var() / len(near) + far.var() / len(far)).sqrt()
    return bool(far.mean() - near.mean() > 5 * error) and bool(near.mean() < pairs.mean())


def trained_first(x: Tensor, y: Tensor) -> Views:
    """The side with a gradient is trained; the other may come from a memory bank."""
    return Views(y, x) if y.requires_grad and not x.requires_grad else Views(x, y)


def extracted(found: Any) -> Views:
    """What a user's function returned, as views.

    Raises:
        RefusedError: If it is not features, a pair of them or a dictionary of them.
    """
    if isinstance(found, Mapping):
        unknown = set(found) - {"x", "y", "labels"}
        if unknown or "x" not in found:
            raise RefusedError(
                f"extract= returned the keys {sorted(map(str, found))}; "
                "'x' is needed, 'y' and 'labels' are allowed"
            )
        views = Views(found["x"], found.get("y"), found.get("labels"))
    elif isinstance(found, (tuple, list)) and len(found) == 2:
        views = Views(found[0], found[1])
    else:
        views = Views(found)
    sides = [views.x] if views.y is None else [views.x, views.y]
    if not all(is_features(side) for side in sides) or len({s.shape for s in sides}) != 1:
        given = ", ".join(describe(side) for side in sides)
        raise RefusedError(
            f"extract= returned {given}; return features (n, d), a pair (x, y) of equal shape, "
            "or a dictionary with 'x' and optionally 'y' and 'labels'"
        )
    if views.labels is not None and views.labels.shape != views.x.shape[:1]:
        raise RefusedError(
            f"extract= returned labels {describe(views.labels)} for features "
            f"{describe(views.x)}; return one label a row"
        )
    return views


def describe(value: Any) -> str:
    """A value's type and shape, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Unkept):
        return value.what
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {sorted(map(str, value))}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
