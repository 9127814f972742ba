"""Which submodules may hand on features, by the names that methods give them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hsplugin.monitor.views import RefusedError

# Outputs of these are predictions or class scores.
_NO_FEATURES = re.compile(r"pred|decoder|classif|probe|logit|metric|callbacks_|queue|bank")
_PREDICTION = re.compile(r"predict|decoder", re.IGNORECASE)
# What a copy of the trained module gives, such as the targets.
_COPY = re.compile(r"teacher|momentum|target|(^|[._])(ema|key)([._]|$)")
_HEAD = re.compile(
    r"(^|_)(proj(ection|ector)?_?(head|mlp|net)|projection|projector)$"
    r"|(^|_)(student|online|query|dino|ssl|contrastive|cls|mlp)_(cls_)?head$"
)
_BACKBONE = re.compile(r"(^|_)(backbone|encoder|trunk|feature_extractor|embedding_model)$")
# Wrappers that pass their input to one module of such a name.
_WRAPPED = {"student", "online", "module", "model"}
_PROTOTYPES = ("prototypes", "last_layer")
_OF_SCORES = re.compile(r"dino|ibot|msn|swav", re.IGNORECASE)
# What torch.compile wraps: a hook on the wrapper costs nothing, one within it compiles it again.
_COMPILED = re.compile(r"(^|\.)_orig_mod(\.|$)")
_CLASSIFIER = re.compile(r"classif|probe")
# The last layer of an encoder of tokens, where a method calls its parts and not the whole.
_LAST_NORM = re.compile(r"^(norm|ln|ln_f|layernorm|final_layer_norm)$")


@dataclass(frozen=True)
class Candidates:
    """Submodules by their dotted names, in the order of the tree."""

    criteria: dict[str, nn.Module]
    heads: dict[str, nn.Module]
    prototypes: dict[str, nn.Module]
    backbones: dict[str, nn.Module]
    norms: dict[str, nn.Module]
    classifiers: dict[str, nn.Module]
    children: dict[str, nn.Module]


def candidates(pl_module: nn.Module) -> Candidates:
    """The submodules that may hand on features."""
    children = dict(pl_module.named_children())
    parts = dict(_parts(pl_module))
    named = {
        name: m
        for name, m in pl_module.named_modules()
        if name and not _COPY.search(name) and not _is_scripted(m)
    }
    trained = {
        name: m
        for name, m in named.items()
        if not _NO_FEATURES.search(name) and not _PREDICTION.search(type(m).__name__)
    }
    criteria = _criteria(children, trained)
    trained, named = (
        {name: m for name, m in modules.items() if not _COMPILED.search(name)}
        for modules in (trained, named)
    )
    scoring = {n: m for n, m in named.items() if _last(n) in _PROTOTYPES and _scores(m)}
    heads = {n: m for n, m in trained.items() if _is(_HEAD, n) and not _below(_BACKBONE, n)}
    return Candidates(
        criteria=criteria,
        heads=heads,
        prototypes=scoring,
        # Within a backbone, "encoder" names one of its parts.
        backbones={
            n: m
            for n, m in trained.items()
            if _is(_BACKBONE, n) and not _below(_BACKBONE, _above(n) if _last(n) in _WRAPPED else n)
        },
        norms={
            n: trained[n]
            for n in reversed(trained)
            if _below(_BACKBONE, n) and _LAST_NORM.search(_last(n))
        },
        classifiers={n: m for n, m in named.items() if _CLASSIFIER.search(n) and _scores(m)},
        children={
            n: m
            for n, m in sorted(parts.items(), key=lambda part: part[0] not in children)
            if n in trained and not is_criterion_of_torch(m) and n not in {**criteria, **scoring}
        },
    )


def prototypes(pl_module: nn.Module) -> dict[int, str]:
    """Names of the layers that score prototypes, by the number of scores."""
    return {
        _scores(module): name
        for name, module in pl_module.named_modules()
        if _last(name) in _PROTOTYPES and _scores(module)
    }


def submodule(pl_module: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name.

    Raises:
        RefusedError: If there is none, which names near ones, or it takes no hook.
    """
    try:
        found = pl_module.get_submodule(name)
    except AttributeError:
        import difflib

        names = [known for known, _ in pl_module.named_modules() if known]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        children = [known for known, _ in pl_module.named_children()]
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {children}"
        raise RefusedError(f"module={name!r} names no submodule; {hint}") from None
    if _is_scripted(found):
        raise RefusedError(
            f"module={name!r} is compiled by torch.jit, which takes no hook; give extract=..."
        )
    return found


def is_criterion_of_torch(module: nn.Module) -> bool:
    """Whether it is one of torch's losses, which compare predictions with targets."""
    return type(module).__module__ == "torch.nn.modules.loss"


def compares_scores(criterion: nn.Module) -> bool:
    """Whether its name is that of a loss of scores of prototypes."""
    return bool(_OF_SCORES.search(type(criterion).__name__))


def _criteria(
    children: dict[str, nn.Module], trained: dict[str, nn.Module]
) -> dict[str, nn.Module]:
    """Those named "criterion", then the other children, then those further down."""
    named = [n for n in trained if "criterion" in _last(n) or "loss" in _last(n)]
    named = [n for n in named if n in children or not is_criterion_of_torch(trained[n])]
    named.sort(key=lambda n: (n != "criterion", n not in children))
    return {n: trained[n] for n in named}


def _parts(module: nn.Module, above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children, and in the place of those that cannot be called, such as lists, theirs."""
    for name, child in module.named_children():
        if "forward" in vars(child) or type(child).forward is not nn.Module.forward:
            yield above + name, child
        else:
            yield from _parts(child, f"{above}{name}.")


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _is(pattern: re.Pattern[str], name: str) -> bool:
    last = _last(name)
    return bool(pattern.search(last) or (last in _WRAPPED and pattern.search(_last(_above(name)))))


def _below(pattern: re.Pattern[str], name: str) -> bool:
    return any(pattern.search(part) for part in name.split(".")[:-1])


def _scores(module: nn.Module) -> int:
    width = getattr(module, "out_features", 0)
    return width if isinstance(width, int) else 0
