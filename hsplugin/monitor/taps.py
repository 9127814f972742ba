"""Finds the features of a step, in the order in which methods hand them on.

Hooks only keep references to what passed through; everything else happens after the step. They
branch on nothing that changes between steps. Hooks within what torch.compile compiles have it
compiled again within the first step, for its first and second view, so that it is left out where it
can be: what it returns is hooked instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hsplugin.monitor.batches import check_labels, labels_of, samples_and_views
from hsplugin.monitor.modules import (
    Candidates,
    candidates,
    compares_scores,
    is_criterion_of_torch,
    prototypes,
    submodule,
)
from hsplugin.monitor.record import Call, Record
from hsplugin.monitor.undisturbed import undisturbed
from hsplugin.monitor.views import (
    Pool,
    RefusedError,
    Views,
    describe,
    embedding_of,
    extracted,
    is_features,
    paired,
    pooled,
    trained_first,
    vectors,
)

Extract = Callable[[nn.Module, Any, Any], "Tensor | tuple[Tensor, Tensor] | Mapping[str, Tensor]"]
# What is hooked for it, what is measured, in words, and how to get it from the record of a step of
# a known batch.
Source = tuple[str, str, Callable[[Any], Views]]

_REMEDY = (
    "name the submodule that returns the features with module=..., or give extract=...; "
    "pool='mean' takes the mean of tokens (n, l, d)"
)


class Taps:
    """Finds the features of one batch of a LightningModule.

    The first of these that has features is used, from then on alone:

    1. ``extract(pl_module, outputs, batch)``: the user's function.
    2. ``module``: the outputs of the submodule of that name; its first two calls in a step are
       the two views. If it returns a scalar it is a criterion, and its inputs are taken.
    3. The ``"z"`` of the dictionary that ``pl_module.forward`` returns, as in all of solo-learn.
    4. The inputs of a submodule named like ``criterion`` or ``loss``, at any depth: two floating
       2-D tensors of equal shape and no other tensors.
    5. The ``embedding`` of what ``forward`` or a part of the module returns, as in
       stable-pretraining.
    6. The output of a projection head, unless it holds scores of prototypes; then what these
       prototypes score.
    7. The output of a backbone, what a classifier is given, then the output of any other part of
       the module, where it is 2-D.

    Args:
        extract: The user's function, see above.
        module: Dotted name of a submodule, see above.
        labels: Key or position of the labels in a batch.
        pool: How outputs (n, l, d) become features: "mean" or "cls", the first token.

    Raises:
        TypeError: If ``labels`` is neither a key nor a position.
        ValueError: If both ``extract`` and ``module`` are given, or ``pool`` is unknown.
    """

    def __init__(
        self,
        extract: Extract | None = None,
        module: str | None = None,
        labels: str | int | None = None,
        pool: Pool | None = None,
    ) -> None:
        if extract is not None and module is not None:
            raise ValueError("give extract= or module=, not both: each says where the features are")
        if pool not in (None, "mean", "cls"):
            raise ValueError(f"pool must be 'mean', 'cls' or None, got {pool!r}")
        check_labels(labels)
        self.extract = extract
        self.module = module
        self.labels = labels
        self.pool = pool
        self.measured = "what extract= returns" if extract is not None else ""
        self._record = Record(keeps_maps=pool is not None)
        self._found: Candidates | None = None
        self._prototypes: dict[int, str] = {}
        self._views: Callable[[Any], Views] | None = None
        # How many views a call is taken to hold, one after the other.
        self.parts = 1

    @property
    def split(self) -> str:
        """What is assumed of a call with the rows of several views, in words."""
        return f", taken for {self.parts} views one after the other" if self.parts > 1 else ""

    def __getstate__(self) -> dict[str, Any]:
        # A copy, made while a module trains, has no part in that training.
        fresh = {"_record": Record(self.pool is not None), "_found": None, "_views": None}
        return {**self.__dict__, **fresh}

    @property
    def ready(self) -> bool:
        """Whether :meth:`views` can be called: an extract function needs no hook."""
        return self._record.hooked or self.extract is not None

    def install(self, pl_module: nn.Module) -> None:
        """Hook the module; that it has no features is reported at the first batch.

        Raises:
            RefusedError: If there is no submodule of that name.
        """
        self.remove()
        if self.extract is not None:
            return
        self.measured = ""
        if self.module is not None:
            self._record.hook(self.module, submodule(pl_module, self.module), whole=True)
            return
        self._prototypes = prototypes(pl_module)
        self._found = found = candidates(pl_module)
        self._record.hook("", pl_module, whole=True)
        for name, criterion in found.criteria.items():
            self._record.hook(name, criterion, whole=True)
        for name, layer in {**found.prototypes, **found.classifiers}.items():
            self._record.hook(name, layer, inputs=True)
        norms = {} if self.pool is None else found.norms
        for name, part in {**found.children, **found.backbones, **found.heads, **norms}.items():
            self._record.hook(name, part)

    def remove(self) -> None:
        """Remove the hooks."""
        self._record.remove()
        self._found = None
        self._views = None

    def listen(self) -> None:
        """Start to record, from an empty record."""
        self._record.start()

    def stop(self) -> None:
        """Stop recording and hold no memory between steps."""
        self._record.stop()

    def views(self, pl_module: nn.Module, outputs: Any, batch: Any) -> Views:
        """The features of the last step, detached.

        Raises:
            RefusedError: If they cannot be measured.
        """
        if self.extract is not None:
            with undisturbed(pl_module):
                found = extracted(self.extract(pl_module, outputs, batch))
        else:
            found = self._choose(batch) if self._views is None else self._views(batch)
        found = found.map(Tensor.detach)
        if found.labels is None:
            found = Views(found.x, found.y, labels_of(batch, len(found.x), self.labels))
        return found

    def _choose(self, batch: Any) -> Views:
        """Take the first source that has features, and keep to it."""
        reasons: list[str] = []
        for name, what, source in self._sources():
            self.parts = 1
            try:
                found = source(batch)
            except RefusedError as error:
                reasons.append(str(error))
                continue
            self.measured, self._views = what, source
            self._record.keep_only(name)
            return found
        raise RefusedError(f"{'; '.join(dict.fromkeys(filter(None, reasons)))}; {_REMEDY}")

    def _sources(self) -> Iterator[Source]:
        if self.module is not None:
            yield self.module, f"the output of {self.module!r}", self._of_module
            return
        assert self._found is not None
        yield "", "forward's 'z'", self._of_forward
        if not self._found.criteria:
            yield "", "", _refuse("it has no criterion submodule")
        for name, criterion in self._found.criteria.items():
            yield name, f"the inputs of {name!r}", self._of_criterion(name, criterion)
        yield "", "the embedding that forward returns", self._of_embedding
        for name in self._called(self._found.children):
            if self._record.embeds(name):
                yield name, f"the embedding that {name!r} returns", self._of_output(name)
        for name in self._trained(self._found.heads):
            yield name, f"the output of {name!r}", self._of_output(name)
        for name in self._trained(self._found.prototypes):
            yield name, f"what the prototypes {name!r} score", self._of_output(name)
        for name in self._trained({**self._found.backbones, **self._found.norms}):
            yield name, f"the output of {name!r}", self._of_output(name)
        for name in self._called(self._found.classifiers):
            yield name, f"what the classifier {name!r} is given", self._of_output(name)
        for name in self._trained(self._found.children):
            yield name, f"the output of {name!r}", self._of_output(name)

    def _called(self, modules: Mapping[str, nn.Module]) -> list[str]:
        return [name for name in modules if self._record[name]]

    def _trained(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """Those that were called, those with a gradient first."""
        return sorted(self._called(modules), key=lambda name: not self._record.trained(name))

    def _of_module(self, batch: Any) -> Views:
        name = str(self.module)
        calls = self._record[name]
        if not calls:
            raise RefusedError(f"module={name!r} was not called in the step")
        if isinstance(calls[0].output, Tensor) and calls[0].output.dim() == 0:
            return _two_views(name, calls[0])
        return self._paired([call.output for call in calls], f"the output of {name!r}", batch)

    def _of_forward(self, batch: Any) -> Views:
        # Under DDP the whole step runs through forward; its result has a loss.
        outputs = [o for o in self._forward() if isinstance(o, Mapping) and "loss" not in o]
        features = [output["z"] for output in outputs if isinstance(output.get("z"), Tensor)]
        if not features:
            keys = sorted({str(key) for output in outputs for key in output})
            raise RefusedError(f"forward returned {keys}, no 'z'" if keys else "")
        return self._not_prototypes(paired(features, "forward's 'z'"))

    def _of_criterion(self, name: str, criterion: nn.Module) -> Callable[[Any], Views]:
        def take(batch: Any) -> Views:
            calls = self._record[name]
            if not calls:
                raise RefusedError(f"the criterion {name!r} was not called in the step")
            if is_criterion_of_torch(criterion):
                raise RefusedError(
                    f"{type(criterion).__name__} of torch compares predictions with targets, "
                    "not two views"
                )
            if compares_scores(criterion):
                raise RefusedError(f"{type(criterion).__name__} compares scores of prototypes")
            return self._not_prototypes(_two_views(type(criterion).__name__, calls[0]))

        return take

    def _of_embedding(self, batch: Any) -> Views:
        found: list[Tensor] = []
        for output in self._forward():
            value = embedding_of(output)
            # Under DDP the same tensor is handed on by forward and by the step.
            if isinstance(value, Tensor) and not any(value is other for other in found):
                found.append(value)
        if not found:
            raise RefusedError("")
        return self._paired(found, "the embedding", batch)

    def _of_output(self, name: str) -> Callable[[Any], Views]:
        def take(batch: Any) -> Views:
            outputs = [call.output for call in self._record[name]]
            if not outputs:
                raise RefusedError(f"{name!r} was not called in the step")
            return self._not_prototypes(self._paired(outputs, f"the output of {name!r}", batch))

        return take

    def _forward(self) -> Sequence[Any]:
        return [call.output for call in self._record[""]]

    def _paired(self, outputs: Sequence[Any], what: str, batch: Any) -> Views:
        outputs = [pooled(vectors(output), self.pool) for output in outputs]
        views = paired(outputs, what, *samples_and_views(batch))
        self.parts = len(outputs[0]) // len(views.x) if len(views.x) else 1
        return views

    def _not_prototypes(self, views: Views) -> Views:
        width = views.x.shape[1]
        if width in self._prototypes:
            raise RefusedError(
                f"the tensors are scores of the {width} prototypes of "
                f"{self._prototypes[width]!r}, not features"
            )
        return views


def _refuse(reason: str) -> Callable[[Any], Views]:
    def refuse(batch: Any) -> Views:
        raise RefusedError(reason)

    return refuse


def _two_views(criterion: str, call: Call) -> Views:
    """The inputs of a criterion.

    Raises:
        RefusedError: If they are not two views and nothing else.
    """
    passed = [a for a in call.arguments if not isinstance(a, (bool, int, float, str, type(None)))]
    if (
        len(passed) != 2
        or not all(is_features(tensor) for tensor in passed)
        or passed[0].shape != passed[1].shape
    ):
        given = ", ".join(describe(argument) for argument in passed) or "nothing"
        raise RefusedError(
            f"{criterion} is not called with exactly two floating (n, d) tensors of equal shape "
            f"but with {given}"
        )
    return trained_first(passed[0], passed[1])
