"""A bounded, evenly spaced sample of the batches of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.monitor.views import Views

# As many multiplications of pairs of rows take two cores about half a second.
MOST_PRODUCTS = 2.0**35


def most_rows(max_samples: int, dim: int) -> int:
    """How many rows of this dimension are compared with each other at most."""
    return max(2, min(max_samples, int((MOST_PRODUCTS / dim) ** 0.5)))


class Samples:
    """Keeps at most ``max_samples`` rows, evenly spaced over an epoch of unknown length.

    When full, every second batch is dropped, and from then on only half as many are taken. Which
    batches are kept depends on their index alone: no random numbers, no read from the device.

    Args:
        every: Take every n-th batch, at least 1.
        max_samples: Rows held at most; fewer of very wide features, see `most_rows`.

    Example:
        >>> import torch
        >>> samples = Samples(every=2, max_samples=4)
        >>> taken = []
        >>> for index in range(12):
        ...     if samples.wants(index):
        ...         samples.add(index, Views(torch.full((2, 1), float(index))))
        >>> [int(views.x[0]) for views in samples]
        [0, 8]
    """

    def __init__(self, every: int, max_samples: int) -> None:
        self.every = every
        self.max_samples = max_samples
        self._stride = 1
        self._kept: list[tuple[int, Views]] = []

    def __iter__(self) -> Any:
        return iter([views for _, views in self._kept])

    def __len__(self) -> int:
        """Number of rows held."""
        return sum(len(views.x) for _, views in self._kept)

    def wants(self, index: int) -> bool:
        """Whether to keep the batch of this index within the epoch."""
        return index % (self.every * self._stride) == 0

    def add(self, index: int, views: Views) -> None:
        """Keep a copy of the features, on the device where they are."""
        most = most_rows(self.max_samples, views.x.shape[1])
        rows = views.map(lambda tensor: tensor[:most].detach().clone())
        self._kept.append((index, rows))
        while len(self) > most:
            self._stride *= 2
            self._kept = [kept for kept in self._kept if self.wants(kept[0])]

    def clear(self) -> None:
        """Start a new epoch."""
        self._stride = 1
        self._kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to resume within an epoch: plain tensors."""
        kept = [(index, [views.x, views.y, views.labels]) for index, views in self._kept]
        return {"stride": self._stride, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""
        self._stride = state["stride"]
        self._kept = [(index, Views(*tensors)) for index, tensors in state["kept"]]

    def joined(self) -> Views | None:
        """All rows of the first batch's dimension on the CPU, or None if there are none."""
        if not self._kept:
            return None
        first = self._kept[0][1]
        like = [v for v in self if v.x.shape[1] == first.x.shape[1]]

        def join(name: str) -> Tensor | None:
            parts = [getattr(views, name) for views in like]
            if any(part is None for part in parts):
                return None
            # Tensors from a checkpoint are on the CPU already.
            return torch.cat([part.cpu() for part in parts])

        x = join("x")
        return None if x is None else Views(x, join("y"), join("labels"))
