"""What a batch tells: how many samples it has, in how many views, and their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hsplugin.monitor.views import LabelsError, describe

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")


def check_labels(labels: object) -> None:
    """Refuse anything but a key, a position or None.

    Raises:
        TypeError: If it is something else.
    """
    if labels is not None and (isinstance(labels, bool) or not isinstance(labels, (str, int))):
        raise TypeError(
            "labels must be the key or the position of the labels in a batch, such as 'label' or "
            f"1, got {type(labels).__name__}: {labels!r}"
        )


def labels_of(batch: Any, rows: int, where: str | int | None = None) -> Tensor | None:
    """The labels of a batch, one integer a row, or None if it has none.

    Without ``where`` they are looked for under the keys that data sets use for labels, and then
    are the last such tensor, where loaders put them.

    Raises:
        LabelsError: If ``where`` leads to no such tensor.
    """
    if where is not None:
        return _chosen(batch, rows, where)
    if isinstance(batch, Mapping):
        named = [batch[key] for key in _LABEL_KEYS if key in batch]
        items = [*(v for k, v in batch.items() if not _is_index(k)), *reversed(named)]
    else:
        items = list(batch) if isinstance(batch, (tuple, list)) else []
    found = [item.detach() for item in items if _are_labels(item, rows)]
    return found[-1] if found else None


def _chosen(batch: Any, rows: int, where: str | int) -> Tensor:
    # A tensor would take a position for that of a row.
    parts: Any = () if isinstance(batch, Tensor) else batch
    try:
        found = parts[where]
    except (KeyError, IndexError, TypeError):
        has = sorted(map(str, batch)) if isinstance(batch, Mapping) else describe(batch)
        raise LabelsError(f"labels={where!r} is not in the batch, which has {has}") from None
    if not _are_labels(found, rows):
        raise LabelsError(
            f"labels={where!r} is {describe(found)}, not one integer for each of {rows} rows"
        )
    return found.detach()


def _are_labels(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.shape == (rows,) and value.dtype in _INTEGERS


def _is_index(key: Any) -> bool:
    parts = str(key).lower().split("_")
    return bool({"id", "ids", "idx", "index", "indices", "indexes"} & set(parts))


def samples_and_views(batch: Any) -> tuple[int | None, int]:
    """The number of samples of a batch, if it can be told, and of its tensors with features.

    Views that are made within the step are not in the batch, so two are always allowed for.
    """
    tensors = [tensor for tensor in _tensors(batch) if tensor.dim() > 0]
    if not tensors:
        return None, 0
    size = len(tensors[0])
    views = sum(tensor.dim() > 1 and len(tensor) == size for tensor in tensors)
    return size, max(views, 2)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)
