"""The geometry monitor in the conventions of stable-pretraining's callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "hsplugin_stable_pretraining needs stable-pretraining: "
        "pip install 'hsplugin[stable-pretraining]'"
    ) from error

from hsplugin.monitor import GeometryMonitorMixin
from hsplugin_stable_pretraining.forward import views_of


class GeometryMonitor(GeometryMonitorMixin, Callback):  # type: ignore[misc]
    """Measures the geometry of what stands under a key; never changes training.

    Takes a name and keys as stable-pretraining's ``OnlineKNN`` does, and measures both training,
    as ``<name>/uniformity``, and validation, as ``<name>/val_uniformity``. Of features that hold
    the views of a batch one after the other, the first two are the pair that alignment compares.

    Args:
        name: The part of each logged name before the slash. Two monitors need two names.
        input: Key of the features (n, d) in what the module's forward returns, or in the batch.
        target: Key of the labels (n,), used by metrics of labels if it is there.
        settings: Other arguments of :class:`hsplugin.monitor.GeometryMonitorMixin`, such as
            ``metrics`` and ``every_n_steps``.

    Raises:
        TypeError: If an argument has the wrong type, or is unknown.
        ValueError: If an argument is out of range, or a metric is unknown.

    Example:
        >>> monitor = GeometryMonitor(name="heads", input="projection", every_n_steps=10)
    """

    def __init__(
        self,
        name: str = "geometry",
        input: str = "embedding",
        target: str = "label",
        **settings: Any,
    ) -> None:
        super().__init__(extract=self._of_key, prefix=name, **settings)
        self.name = name
        self.input = input
        self.target = target

    def _of_key(self, module: nn.Module, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """The first two views under the key, and the labels of the first."""
        found = {**batch, **(outputs or {})}
        if self.input not in found:
            raise ValueError(f"input={self.input!r} is no key; there are {sorted(found)}")
        features, labels = found[self.input], found.get(self.target)
        rows = _samples(batch)
        views = [features]
        if rows and len(features) % rows == 0:
            views = features.split(rows)
        parts = {"x": views[0]}
        if len(views) > 1:
            parts["y"] = views[1]
        if labels is not None:
            parts["labels"] = labels[: len(views[0])]
        return parts


def _samples(batch: Mapping[str, Any]) -> int:
    """How many samples the batch has views of; 0 if it holds no views."""
    views = views_of(batch)
    tensors = [value for value in views[0].values() if isinstance(value, Tensor)] if views else []
    return len(tensors[0]) if tensors else 0
