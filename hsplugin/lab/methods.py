"""The methods that can be trained: one table, built from Lightly's own losses and heads.

A new method is one entry of `METHODS`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hsplugin.checks import check_integer, check_number, unknown
from hsplugin.errors import CommandError
from hsplugin.flags import check
from hsplugin.lab.settings import RunSettings

Options = Mapping[str, Any]

# Options that every method knows; their defaults come from the flags of the same name.
SHARED_OPTIONS = ("lr", "weight_decay", "dim")


class Networks(Protocol):
    """What a step may use: the parts of the learner."""

    predictor: nn.Module

    def project(self, view: Tensor) -> Tensor:
        """Projection of one view."""

    def target(self, view: Tensor) -> Tensor:
        """Projection of one view by the moving average of encoder and head, without gradient."""

    def loss(self, *projections: Tensor, **named: Tensor) -> Tensor:
        """The method's criterion of the projections, in float32."""


@dataclass(frozen=True)
class Method:
    """A recipe: projection head, criterion, and how one step joins them.

    Attributes:
        about: One line that says what it is.
        head: Builds the projection head from the number of features and the options.
        criterion: Builds the loss from the options.
        defaults: The method's own options and their defaults.
        candidates: Options to try beside the defaults when the method is tuned.
        step: Computes the loss of two views; the default is loss(project(a), project(b)).
        predictor: Builds the prediction head on top of the projection, if there is one.
        momentum: Whether a moving average of encoder and head gives the targets; its rate grows
            from the option ``momentum`` to 1 along a cosine.
    """

    about: str
    head: Callable[[int, Options], nn.Module]
    criterion: Callable[[Options], nn.Module]
    defaults: Options = field(default_factory=dict)
    candidates: Sequence[Options] = ()
    step: Callable[[Networks, Tensor, Tensor], Tensor] | None = None
    predictor: Callable[[Options], nn.Module] | None = None
    momentum: bool = False


def recipe(method: str) -> Method:
    """The recipe of a method; the untrained encoder gets SimCLR's head.

    Raises:
        CommandError: Unknown method (near matches are suggested).
    """
    name = "simclr" if method == UNTRAINED else method
    if name not in METHODS:
        raise CommandError(unknown("method", name, METHODS))
    return METHODS[name]


def options_of(method: str, given: Options, shared: Options) -> dict[str, Any]:
    """All options of a method: what is given, over the method's defaults, over the shared ones.

    Raises:
        CommandError: Unknown method or option (near matches are suggested), or a value of another
            kind than the default's, or NaN, or infinite.
    """
    known = {**{name: shared[name] for name in SHARED_OPTIONS}, **recipe(method).defaults}
    for name, value in given.items():
        if name not in known:
            raise CommandError(unknown(f"option of {method}", name, known))
        try:
            if name in SHARED_OPTIONS:
                check(RunSettings, {name: value}, lambda name: f"{method}.{name}")
            elif isinstance(known[name], int):
                check_integer(f"{method}.{name}", value, least=-(2**31), most=2**31)
            else:
                check_number(f"{method}.{name}", value)
        except (TypeError, ValueError, OverflowError) as error:
            raise CommandError(str(error)) from None
    return {**known, **given}


def _loss(
    path: str, *same: str, gather: bool = True, **arguments: str | tuple[str, ...]
) -> Callable[[Options], nn.Module]:
    """Build a loss from options.

    Args:
        path: Its class, or what builds it, by dotted name; imported when it is built.
        same: Arguments that are options of the same name.
        gather: Whether it takes ``gather_distributed``.
        **arguments: Argument -> the option of another name, or several options as a tuple.
    """

    def build(options: Options) -> nn.Module:
        values = {argument: options[argument] for argument in same}
        for argument, source in arguments.items():
            names = (source,) if isinstance(source, str) else source
            found = tuple(options[name] for name in names)
            values[argument] = found[0] if isinstance(source, str) else found
        if gather:
            values["gather_distributed"] = options["gather"]
        criterion: nn.Module = pkgutil.resolve_name(path)(**values)
        return criterion

    return build


def _head(name: str, **fixed: Any) -> Callable[[int, Options], nn.Module]:
    """Build one of Lightly's projection heads: features -> hidden -> dim."""

    def build(features: int, options: Options) -> nn.Module:
        from lightly.models.modules import heads

        head: nn.Module = getattr(heads, name)(features, options["hidden"], options["dim"], **fixed)
        return head

    return build


def _predictor(name: str) -> Callable[[Options], nn.Module]:
    """Build one of Lightly's prediction heads: dim -> predictor_hidden -> dim."""

    def build(options: Options) -> nn.Module:
        from lightly.models.modules import heads

        dim = options["dim"]
        predictor: nn.Module = getattr(heads, name)(dim, options["predictor_hidden"], dim)
        return predictor

    return build


_SIMCLR_HEAD = _head("SimCLRProjectionHead")
# No batch norm at the end: VICReg, LeJEPA and VISReg set the scale of the dimensions.
_VICREG_HEAD = _head("VICRegProjectionHead", num_layers=2)
_NEGATIVE_COSINE = _loss("lightly.loss.NegativeCosineSimilarity", gather=False)


def _predict_other_view(networks: Networks, a: Tensor, b: Tensor) -> Tensor:
    """SimSiam: each view's prediction meets the other view's projection, held fixed."""
    z_a, z_b = networks.project(a), networks.project(b)
    first = networks.loss(networks.predictor(z_a), z_b.detach())
    second = networks.loss(networks.predictor(z_b), z_a.detach())
    return (first + second) / 2


def _predict_target(networks: Networks, a: Tensor, b: Tensor) -> Tensor:
    """BYOL: each view's prediction meets the other view's momentum projection."""
    first = networks.loss(networks.predictor(networks.project(a)), networks.target(b))
    second = networks.loss(networks.predictor(networks.project(b)), networks.target(a))
    return (first + second) / 2


def _against_target(networks: Networks, a: Tensor, b: Tensor) -> Tensor:
    """MoCo's forms and TiCo: the first view's projection meets the second's momentum projection."""
    return networks.loss(networks.project(a), networks.target(b))


def _global_and_local(networks: Networks, a: Tensor, b: Tensor) -> Tensor:
    """LeJEPA and VISReg with two views: one global, one local, which is symmetric for two."""
    return networks.loss(
        global_proj=networks.project(a).unsqueeze(0), local_proj=networks.project(b).unsqueeze(0)
    )


def _each(option: str, *values: float) -> list[Options]:
    return [{option: value} for value in values]


METHODS: dict[str, Method] = {
    "align_uniform": Method(
        "this package: alignment + uniformity, with its defaults alpha = 2, t = 2",
        _SIMCLR_HEAD,
        _loss("hsplugin.AlignUniformLoss", "align_weight", "uniform_weight", "alpha", "t"),
        {"hidden": 512, "align_weight": 1.0, "uniform_weight": 1.0, "alpha": 2.0, "t": 2.0},
        (
            {"uniform_weight": 0.5},
            {"uniform_weight": 0.25},
            {"t": 1.0},
            {"align_weight": 3.0, "t": 3.0},
        ),
    ),
    "align_uniform_tau": Method(
        "this package: alignment + uniformity with the weights and the t of a temperature",
        _SIMCLR_HEAD,
        _loss("hsplugin.AlignUniformLoss.from_temperature", "temperature"),
        {"hidden": 512, "temperature": 0.5},
        _each("temperature", 0.1, 0.2, 0.7, 1.0),
    ),
    "simclr": Method(
        "Lightly's NTXentLoss",
        _SIMCLR_HEAD,
        _loss("lightly.loss.NTXentLoss", "temperature"),
        {"hidden": 512, "temperature": 0.5},
        _each("temperature", 0.1, 0.2, 0.7, 1.0),
    ),
    "hypersphere": Method(
        "Lightly's HypersphereLoss, with its default t = 1",
        _SIMCLR_HEAD,
        _loss("lightly.loss.hypersphere_loss.HypersphereLoss", "t", "lam", "alpha", gather=False),
        {"hidden": 512, "t": 1.0, "lam": 1.0, "alpha": 2.0},
        ({"lam": 0.25}, {"lam": 0.5}, {"lam": 2.0}, {"t": 2.0, "lam": 0.5}),
    ),
    "barlowtwins": Method(
        "Lightly's BarlowTwinsLoss",
        _head("BarlowTwinsProjectionHead"),
        _loss("lightly.loss.BarlowTwinsLoss", "lambda_param"),
        {"hidden": 512, "dim": 512, "lambda_param": 5e-3},
        _each("lambda_param", 1e-3, 2e-2, 5e-2, 1e-1),
    ),
    "vicreg": Method(
        "Lightly's VICRegLoss",
        _VICREG_HEAD,
        _loss("lightly.loss.VICRegLoss", "lambda_param", "mu_param", "nu_param"),
        {"hidden": 512, "dim": 512, "lambda_param": 25.0, "mu_param": 25.0, "nu_param": 1.0},
        ({"nu_param": 4.0}, {"nu_param": 10.0}, {"mu_param": 10.0}, {"lambda_param": 10.0}),
    ),
    "dcl": Method(
        "Lightly's DCLLoss",
        _SIMCLR_HEAD,
        _loss("lightly.loss.DCLLoss", "temperature"),
        {"hidden": 512, "temperature": 0.1},
        _each("temperature", 0.2, 0.5, 0.7, 1.0),
    ),
    "dclw": Method(
        "Lightly's DCLWLoss",
        _SIMCLR_HEAD,
        _loss("lightly.loss.DCLWLoss", "temperature", "sigma"),
        {"hidden": 512, "temperature": 0.1, "sigma": 0.5},
        _each("temperature", 0.2, 0.5, 0.7, 1.0),
    ),
    "moco": Method(
        "Lightly's NTXentLoss with a queue of momentum keys",
        _head("MoCoProjectionHead"),
        _loss("lightly.loss.NTXentLoss", "temperature", memory_bank_size=("queue", "dim")),
        {"hidden": 512, "temperature": 0.1, "queue": 4096, "momentum": 0.99},
        (
            {"temperature": 0.2},
            {"temperature": 0.5},
            {"momentum": 0.95},
            {"temperature": 0.2, "momentum": 0.95},
        ),
        _against_target,
        momentum=True,
    ),
    "align_uniform_moco": Method(
        "this package: the paper's form for MoCo, against a queue of momentum keys",
        _head("MoCoProjectionHead"),
        _loss(
            "hsplugin_lightly.AlignUniformLoss",
            *("align_weight", "uniform_weight", "alpha", "t"),
            memory_bank_size=("queue", "dim"),
        ),
        {
            "hidden": 512,
            "align_weight": 3.0,
            "uniform_weight": 1.0,
            "alpha": 2.0,
            "t": 3.0,
            "queue": 4096,
            "momentum": 0.99,
        },
        (
            {"align_weight": 1.0, "t": 2.0},
            {"align_weight": 5.0, "t": 5.0},
            {"momentum": 0.95},
            {"align_weight": 1.0, "t": 2.0, "momentum": 0.95},
        ),
        _against_target,
        momentum=True,
    ),
    "byol": Method(
        "Lightly's BYOL heads, momentum target, NegativeCosineSimilarity",
        _head("BYOLProjectionHead"),
        _NEGATIVE_COSINE,
        {"hidden": 512, "predictor_hidden": 512, "momentum": 0.99},
        (*_each("momentum", 0.9, 0.95, 0.996), {"predictor_hidden": 128}),
        _predict_target,
        _predictor("BYOLPredictionHead"),
        momentum=True,
    ),
    "simsiam": Method(
        "Lightly's SimSiam heads, NegativeCosineSimilarity",
        _head("SimSiamProjectionHead"),
        _NEGATIVE_COSINE,
        {"hidden": 512, "predictor_hidden": 128},
        _each("predictor_hidden", 32, 64, 256, 512),
        _predict_other_view,
        _predictor("SimSiamPredictionHead"),
    ),
    "tico": Method(
        "Lightly's TiCoLoss with a momentum target",
        _head("TiCoProjectionHead"),
        _loss("lightly.loss.TiCoLoss", "beta", "rho"),
        {"hidden": 512, "dim": 256, "beta": 0.9, "rho": 20.0, "momentum": 0.99},
        ({"rho": 8.0}, {"rho": 50.0}, {"momentum": 0.95}, {"rho": 8.0, "momentum": 0.95}),
        _against_target,
        momentum=True,
    ),
    "lejepa": Method(
        "Lightly's LeJEPALoss on two views",
        _VICREG_HEAD,
        _loss("lightly.loss.LeJEPALoss", "lambda_param", sigreg_num_vectors="num_vectors"),
        {"hidden": 512, "lambda_param": 0.05, "num_vectors": 256},
        _each("lambda_param", 0.02, 0.1, 0.2, 0.5),
        _global_and_local,
    ),
    "visreg": Method(
        "Lightly's VISRegLoss on two views",
        _VICREG_HEAD,
        _loss("lightly.loss.VISRegLoss", "lambda_param", "num_slices"),
        {"hidden": 512, "lambda_param": 0.9, "num_slices": 256},
        _each("lambda_param", 0.5, 0.7, 0.8, 0.95),
        _global_and_local,
    ),
}

# The baseline of every comparison: the encoder as initialised, never trained.
UNTRAINED = "untrained"
