"""Keeps references to what passes through submodules during a step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hsplugin.monitor.views import Unkept, describe, embedding_of, pooled, vectors

# Of a submodule within a step: two views.
MOST_CALLS = 2


@dataclass(frozen=True)
class Call:
    """One call of a submodule."""

    arguments: tuple[Any, ...]
    output: Any
    embeds: bool = False


class Record:
    """The calls of the hooked submodules within one step, by name.

    Args:
        keeps_maps: Whether outputs that are tokens or maps are kept too.
    """

    def __init__(self, keeps_maps: bool = False) -> None:
        self._keeps_maps = keeps_maps
        self.listening = False
        self._handles: dict[str, Any] = {}
        self._calls: dict[str, list[Call]] = {}
        self._compiled = False

    def __getitem__(self, name: str) -> list[Call]:
        """The first calls of a submodule, in order; none of one that is not hooked."""
        return self._calls.get(name, [])

    def __len__(self) -> int:
        """Number of calls held."""
        return sum(map(len, self._calls.values()))

    @property
    def hooked(self) -> bool:
        """Whether there is a hook."""
        return bool(self._handles)

    def trained(self, name: str) -> bool:
        """Whether an output of the submodule has a gradient."""
        return any(isinstance(c.output, Tensor) and c.output.requires_grad for c in self[name])

    def embeds(self, name: str) -> bool:
        """Whether an output of the submodule says which of its tensors is the embedding."""
        return any(call.embeds for call in self[name])

    def hook(
        self, name: str, module: nn.Module, *, whole: bool = False, inputs: bool = False
    ) -> None:
        """Record the calls of a submodule from now on.

        Args:
            name: What to call it.
            module: The submodule.
            whole: Keep all that it takes and returns, else only the tensor that may be features.
            inputs: Keep what it takes for what it returns.
        """
        # By its own compile(), or by torch.compile of the LightningModule.
        marks = ("_compiled_call_impl", "_compiler_ctx")
        self._compiled |= any(getattr(module, mark, None) is not None for mark in marks)
        # torch.compile compiles a hooked module once for each number of calls that it has seen.
        most = MOST_CALLS if name else sys.maxsize
        keep = _Keep(self, self._calls.setdefault(name, []), whole, inputs, most)
        self._handles[name] = module.register_forward_hook(keep, with_kwargs=True)

    def features(self, output: Any) -> Any:
        """The tensor of an output, but no map that would take memory until the step ends."""
        found = vectors(output)
        if not isinstance(found, Tensor):
            return Unkept(describe(found))
        if self._keeps_maps or found.dim() < 3 or pooled(found).dim() < 3:
            return found
        return Unkept(f"a tensor of {found.dim()} dimensions")

    def start(self) -> None:
        """Record from an empty record."""
        self.stop()
        self.listening = True

    def stop(self) -> None:
        """Stop recording and hold nothing."""
        self.listening = False
        for calls in self._calls.values():
            calls.clear()

    def keep_only(self, name: str) -> None:
        """Remove the hooks of all others: torch.jit.script takes no module that has one.

        They stay where torch.compile has compiled them, which it would do again without them.
        """
        if self._compiled:
            return
        for other in self._handles.keys() - {name}:
            self._handles.pop(other).remove()
            self._calls.pop(other)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._calls.clear()
        self._compiled = False
        self.listening = False


@dataclass(frozen=True, eq=False)
class _Keep:
    """The hook of one submodule."""

    record: Record
    calls: list[Call]
    whole: bool
    inputs: bool
    most: int

    def __call__(self, _: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if not self.record.listening or len(self.calls) == self.most:
            return
        if self.whole:
            # solo-learn's step later writes its loss into the dictionary that forward returned.
            out = dict(out) if isinstance(out, Mapping) else out
            self.calls.append(Call((*args, *kwargs.values()), out))
        else:
            passed = (*args, *kwargs.values()) if self.inputs else out
            embeds = embedding_of(passed) is not None
            self.calls.append(Call((), self.record.features(passed), embeds))

    def __reduce__(self) -> tuple[Any, ...]:
        # Trainings copy and pickle their modules. A copy of one records nothing, and can be loaded
        # where hsplugin is not installed: this is a function of the library that does nothing.
        return partial, (sys.audit, "hsplugin.hook")
