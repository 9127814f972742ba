"""Finds the features of a step: an extract function, a submodule, or the criterion.

Hooks only keep references to what passed through; everything else happens after the step. They
branch on nothing that changes between steps, so a compiled module is not compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsplugin.monitor.undisturbed import undisturbed

Extract = Callable[[nn.Module, Any, Any], "Tensor | tuple[Tensor, Tensor] | Mapping[str, Tensor]"]


class RefusedError(ValueError):
    """The tapped tensors cannot be measured; the message says why and what to do."""


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


@dataclass(frozen=True)
class _Call:
    arguments: tuple[Any, ...]
    output: Any


class Taps:
    """Finds the features of one batch of a LightningModule.

    The first of these that is available is used:

    1. ``extract(pl_module, outputs, batch)``: the user's function.
    2. ``module``: the outputs of the submodule of that name; its first two calls in a step are
       the two views. If it returns a scalar it is a criterion, and its inputs are taken.
    3. The ``"z"`` of the dictionary that ``pl_module.forward`` returns, as in all of solo-learn.
    4. The inputs of the only submodule named like ``criterion``: two floating 2-D tensors of
       equal shape and no other tensors.

    Args:
        extract: The user's function, see above.
        module: Dotted name of a submodule, see above.

    Raises:
        ValueError: If both are given.
    """

    def __init__(self, extract: Extract | None = None, module: str | None = None) -> None:
        if extract is not None and module is not None:
            raise ValueError("give extract= or module=, not both: each says where the features are")
        self.extract = extract
        self.module = module
        self._handles: list[Any] = []
        self._no_criterion = ""
        self._criterion: nn.Module | None = None
        self._prototypes: dict[int, str] = {}
        self._named: list[_Call] = []
        self._forward: list[_Call] = []
        self._criterion_calls: list[_Call] = []
        self._listening = False

    @property
    def ready(self) -> bool:
        """Whether :meth:`views` can be called: an extract function needs no hook."""
        return bool(self._handles) or self.extract is not None

    def install(self, pl_module: nn.Module) -> None:
        """Hook the module; a missing criterion is reported at the first batch.

        Raises:
            RefusedError: If there is no submodule of that name.
        """
        self.remove()
        if self.extract is not None:
            return
        if self.module is not None:
            self._hook(_submodule(pl_module, self.module), self._named)
            return
        self._prototypes = _prototypes(pl_module)
        self._hook(pl_module, self._forward)
        self._criterion, self._no_criterion = _criterion(pl_module)
        if self._criterion is not None:
            self._hook(self._criterion, self._criterion_calls)

    def remove(self) -> None:
        """Remove the hooks."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._criterion = None

    def listen(self) -> None:
        """Start to record, from an empty record."""
        self.stop()
        self._listening = True

    def stop(self) -> None:
        """Stop recording and hold no memory between steps."""
        self._listening = False
        for calls in (self._named, self._forward, self._criterion_calls):
            calls.clear()

    def views(self, pl_module: nn.Module, outputs: Any, batch: Any) -> Views:
        """The features of the last step, detached.

        Raises:
            RefusedError: If they cannot be measured.
        """
        if self.extract is not None:
            with undisturbed(pl_module):
                found = _extracted(self.extract(pl_module, outputs, batch))
        elif self.module is not None:
            found = _named_views(pl_module, self.module, self._named)
        else:
            found = self._default_views()
            self._refuse_prototypes(found)
        found = found.map(Tensor.detach)
        if found.labels is None:
            found = Views(found.x, found.y, _labels(batch, len(found.x)))
        return found

    def _default_views(self) -> Views:
        dicts = [call.output for call in self._forward if isinstance(call.output, Mapping)]
        # Under DDP the whole step runs through forward; its result has a loss.
        dicts = [output for output in dicts if "loss" not in output]
        features = [output["z"] for output in dicts if isinstance(output.get("z"), Tensor)]
        if features:
            return _paired(features, "forward's 'z'")
        if self._criterion is None:
            keys = sorted({str(key) for output in dicts for key in output})
            seen = f"; forward returned {keys}, no 'z'" if keys else ""
            raise RefusedError(f"{self._no_criterion}{seen}; {_REMEDY}")
        if not self._criterion_calls:
            raise RefusedError(f"the criterion was not called in the step; {_REMEDY}")
        return _criterion_views(self._criterion, self._criterion_calls[0])

    def _refuse_prototypes(self, views: Views) -> None:
        width = views.x.shape[1]
        if width in self._prototypes:
            raise RefusedError(
                f"the tensors are scores of the {width} prototypes of "
                f"{self._prototypes[width]!r}, not features; {_REMEDY}"
            )

    def _hook(self, module: nn.Module, calls: list[_Call]) -> None:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if self._listening:
                # solo-learn's step later writes its loss into the dictionary that forward returned.
                out = dict(out) if isinstance(out, Mapping) else out
                calls.append(_Call((*args, *kwargs.values()), out))

        self._handles.append(module.register_forward_hook(keep, with_kwargs=True))


_REMEDY = "name the submodule that returns the features with module=..., or give extract=..."


def _submodule(pl_module: nn.Module, name: str) -> nn.Module:
    try:
        return pl_module.get_submodule(name)
    except AttributeError:
        import difflib

        names = [known for known, _ in pl_module.named_modules() if known]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        children = [known for known, _ in pl_module.named_children()]
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {children}"
        raise RefusedError(f"module={name!r} names no submodule; {hint}") from None


def _criterion(pl_module: nn.Module) -> tuple[nn.Module | None, str]:
    children = dict(pl_module.named_children())
    if "criterion" in children:
        return children["criterion"], ""
    names = [name for name in children if "criterion" in name or "loss" in name]
    if len(names) == 1:
        return children[names[0]], ""
    if names:
        return None, f"it has several criteria {names}: choose one with module=..."
    return None, "it has no criterion submodule"


def _criterion_views(criterion: nn.Module, call: _Call) -> Views:
    name = type(criterion).__name__
    if type(criterion).__module__ == "torch.nn.modules.loss":
        raise RefusedError(
            f"{name} of torch compares predictions with targets, not two views; {_REMEDY}"
        )
    passed = [a for a in call.arguments if not isinstance(a, (bool, int, float, str, type(None)))]
    if (
        len(passed) != 2
        or not all(_is_features(tensor) for tensor in passed)
        or passed[0].shape != passed[1].shape
    ):
        given = ", ".join(_describe(argument) for argument in passed) or "nothing"
        raise RefusedError(
            f"{name} is not called with exactly two floating (n, d) tensors of equal shape "
            f"but with {given}; {_REMEDY}"
        )
    x, y = passed
    # The side with a gradient is trained; the other may come from a memory bank.
    return Views(y, x) if y.requires_grad and not x.requires_grad else Views(x, y)


def _named_views(pl_module: nn.Module, name: str, calls: list[_Call]) -> Views:
    if not calls:
        raise RefusedError(f"module={name!r} was not called in the step; {_REMEDY}")
    outputs = [call.output for call in calls]
    if isinstance(outputs[0], Tensor) and outputs[0].dim() == 0:
        return _criterion_views(pl_module.get_submodule(name), calls[0])
    return _paired(outputs, f"the output of {name!r}")


def _paired(outputs: Sequence[Any], what: str) -> Views:
    features = [_squeezed(output) for output in outputs]
    if not _is_features(features[0]):
        raise RefusedError(
            f"{what} is {_describe(outputs[0])}, not a floating (n, d) tensor; {_REMEDY}"
        )
    x = features[0]
    if len(features) > 1 and _is_features(features[1]) and features[1].shape == x.shape:
        return Views(x, features[1])
    return Views(x)


def _squeezed(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dim() > 2 and output[0, :].numel() == output.shape[1]:
        return output.flatten(1)
    return output


def _extracted(found: Any) -> Views:
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
    if not all(_is_features(side) for side in sides) or len({s.shape for s in sides}) != 1:
        given = ", ".join(_describe(side) for side in sides)
        raise RefusedError(
            f"extract= returned {given}; return features (n, d), a pair (x, y) of equal shape, "
            "or a dictionary with 'x' and optionally 'y' and 'labels'"
        )
    if views.labels is not None and views.labels.shape != views.x.shape[:1]:
        raise RefusedError(
            f"extract= returned labels {_describe(views.labels)} for features "
            f"{_describe(views.x)}; return one label a row"
        )
    return views


def _prototypes(pl_module: nn.Module) -> dict[int, str]:
    """Names of the layers that score prototypes, by the number of scores."""
    return {
        module.out_features: name
        for name, module in pl_module.named_modules()
        if name.rpartition(".")[2] in ("prototypes", "last_layer")
        and isinstance(getattr(module, "out_features", None), int)
    }


def _is_features(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2


def _labels(batch: Any, rows: int) -> Tensor | None:
    """The last 1-D integer tensor of the batch with one entry a row, where loaders put labels."""
    found = None
    items = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, (Mapping, tuple, list)):
        return None
    for item in items:
        if (
            isinstance(item, Tensor)
            and item.shape == (rows,)
            and item.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
        ):
            found = item.detach()
    return found


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
