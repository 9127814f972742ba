"""One table: the name of a method, and its recipe from Lightly's own losses and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hsplugin.checks import unknown
from hsplugin.errors import CommandError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hsplugin.compare.learner import Learner

Options = Mapping[str, Any]

# Options that every method knows; their defaults come from the flags of the same name.
SHARED_OPTIONS = ("lr", "weight_decay", "dim")


@dataclass(frozen=True)
class Method:
    """A recipe: projection head, criterion, and how one step joins them.

    Attributes:
        about: One line for the help text.
        head: Builds the projection head from the number of features and the options.
        criterion: Builds the loss from the options.
        defaults: The method's own options and their defaults.
        candidates: Options to try beside the defaults when the method is tuned.
        step: Computes the loss of two views; the default is criterion(z_a, z_b).
        predictor: Builds the prediction head on top of the projection, if there is one.
        momentum: Whether a moving average of encoder and head gives the targets; its rate grows
            from the option ``momentum`` to 1 along a cosine.
    """

    about: str
    head: Callable[[int, Options], nn.Module]
    criterion: Callable[[Options], nn.Module]
    defaults: Options = field(default_factory=dict)
    candidates: Sequence[Options] = ()
    step: Callable[[Learner, Tensor, Tensor], Tensor] | None = None
    predictor: Callable[[Options], nn.Module] | None = None
    momentum: bool = False


def options_of(method: str, given: Options, shared: Options) -> dict[str, Any]:
    """All options of a method: what is given, over the method's defaults, over the shared ones.

    Raises:
        CommandError: Unknown method or option (near matches are suggested).
    """
    if method not in METHODS:
        raise CommandError(unknown("method", method, METHODS))
    known = {**{name: shared[name] for name in SHARED_OPTIONS}, **METHODS[method].defaults}
    for name in given:
        if name not in known:
            raise CommandError(unknown(f"option of {method}", name, known))
    return {**known, **given}


def _simclr_head(features: int, options: Options) -> nn.Module:
    from lightly.models.modules.heads import SimCLRProjectionHead

    return SimCLRProjectionHead(features, options["hidden"], options["dim"])


def _vicreg_head(features: int, options: Options) -> nn.Module:
    # No batch norm at the end: VICReg, LeJEPA and VISReg set the scale of the dimensions.
    from lightly.models.modules.heads import VICRegProjectionHead

    return VICRegProjectionHead(features, options["hidden"], options["dim"], num_layers=2)


def _barlow_head(features: int, options: Options) -> nn.Module:
    from lightly.models.modules.heads import BarlowTwinsProjectionHead

    return BarlowTwinsProjectionHead(features, options["hidden"], options["dim"])


def _align_uniform(options: Options) -> nn.Module:
    from hsplugin import AlignUniformLoss

    return AlignUniformLoss(
        align_weight=options["align_weight"],
        uniform_weight=options["uniform_weight"],
        alpha=options["alpha"],
        t=options["t"],
        gather_distributed=options["gather"],
    )


def _hypersphere(options: Options) -> nn.Module:
    from lightly.loss.hypersphere_loss import HypersphereLoss

    return HypersphereLoss(t=options["t"], lam=options["lam"], alpha=options["alpha"])


def _barlow(options: Options) -> nn.Module:
    from lightly.loss import BarlowTwinsLoss

    return BarlowTwinsLoss(
        lambda_param=options["lambda_param"], gather_distributed=options["gather"]
    )


def _vicreg(options: Options) -> nn.Module:
    from lightly.loss import VICRegLoss

    return VICRegLoss(
        lambda_param=options["lambda_param"],
        mu_param=options["mu_param"],
        nu_param=options["nu_param"],
        gather_distributed=options["gather"],
    )


def _temperature_loss(name: str) -> Callable[[Options], nn.Module]:
    def build(options: Options) -> nn.Module:
        import lightly.loss

        loss = getattr(lightly.loss, name)
        criterion: nn.Module = loss(
            temperature=options["temperature"], gather_distributed=options["gather"]
        )
        return criterion

    return build


def _dclw(options: Options) -> nn.Module:
    from lightly.loss import DCLWLoss

    return DCLWLoss(
        temperature=options["temperature"],
        sigma=options["sigma"],
        gather_distributed=options["gather"],
    )


def _tico(options: Options) -> nn.Module:
    from lightly.loss import TiCoLoss

    return TiCoLoss(beta=options["beta"], rho=options["rho"], gather_distributed=options["gather"])


def _negative_cosine(options: Options) -> nn.Module:
    from lightly.loss import NegativeCosineSimilarity

    return NegativeCosineSimilarity()


def _moco(options: Options) -> nn.Module:
    from lightly.loss import NTXentLoss

    return NTXentLoss(
        temperature=options["temperature"],
        memory_bank_size=(options["queue"], options["dim"]),
        gather_distributed=options["gather"],
    )


def _lejepa(options: Options) -> nn.Module:
    from lightly.loss import LeJEPALoss

    return LeJEPALoss(
        lambda_param=options["lambda_param"],
        sigreg_num_vectors=options["num_vectors"],
        gather_distributed=options["gather"],
    )


def _visreg(options: Options) -> nn.Module:
    from lightly.loss import VISRegLoss

    return VISRegLoss(
        lambda_param=options["lambda_param"],
        num_slices=options["num_slices"],
        gather_distributed=options["gather"],
    )


def _head_named(name: str) -> Callable[[int, Options], nn.Module]:
    def build(features: int, options: Options) -> nn.Module:
        from lightly.models.modules import heads

        head: nn.Module = getattr(heads, name)(features, options["hidden"], options["dim"])
        return head

    return build


def _predictor_named(name: str) -> Callable[[Options], nn.Module]:
    def build(options: Options) -> nn.Module:
        from lightly.models.modules import heads

        dim = options["dim"]
        predictor: nn.Module = getattr(heads, name)(dim, options["predictor_hidden"], dim)
        return predictor

    return build


def _predict_other_view(learner: Learner, a: Tensor, b: Tensor) -> Tensor:
    """SimSiam: each view's prediction meets the other view's projection, held fixed."""
    z_a, z_b = learner.project(a), learner.project(b)
    first = learner.criterion(learner.predictor(z_a), z_b.detach())
    second = learner.criterion(learner.predictor(z_b), z_a.detach())
    return (first + second) / 2


def _predict_target(learner: Learner, a: Tensor, b: Tensor) -> Tensor:
    """BYOL: each view's prediction meets the other view's momentum projection."""
    first = learner.criterion(learner.predictor(learner.project(a)), learner.target(b))
    second = learner.criterion(learner.predictor(learner.project(b)), learner.target(a))
    return (first + second) / 2


def _against_target(learner: Learner, a: Tensor, b: Tensor) -> Tensor:
    """MoCo and TiCo: the first view's projection meets the second's momentum projection."""
    return learner.criterion(learner.project(a), learner.target(b))


def _global_and_local(learner: Learner, a: Tensor, b: Tensor) -> Tensor:
    """LeJEPA and VISReg with two views: one global, one local, which is symmetric for two."""
    return learner.criterion(
        global_proj=learner.project(a).unsqueeze(0), local_proj=learner.project(b).unsqueeze(0)
    )


def _each(option: str, *values: float) -> list[Options]:
    return [{option: value} for value in values]


METHODS: dict[str, Method] = {
    "align_uniform": Method(
        "this package: alignment + uniformity, with its defaults alpha = 2, t = 2",
        _simclr_head,
        _align_uniform,
        {"hidden": 512, "align_weight": 1.0, "uniform_weight": 1.0, "alpha": 2.0, "t": 2.0},
        (
            {"uniform_weight": 0.5},
            {"uniform_weight": 0.25},
            {"t": 1.0},
            {"align_weight": 3.0, "t": 3.0},
        ),
    ),
    "hypersphere": Method(
        "Lightly's HypersphereLoss, with its default t = 1",
        _simclr_head,
        _hypersphere,
        {"hidden": 512, "t": 1.0, "lam": 1.0, "alpha": 2.0},
        ({"lam": 0.25}, {"lam": 0.5}, {"lam": 2.0}, {"t": 2.0, "lam": 0.5}),
    ),
    "simclr": Method(
        "Lightly's NTXentLoss",
        _simclr_head,
        _temperature_loss("NTXentLoss"),
        {"hidden": 512, "temperature": 0.5},
        _each("temperature", 0.1, 0.2, 0.7, 1.0),
    ),
    "barlowtwins": Method(
        "Lightly's BarlowTwinsLoss",
        _barlow_head,
        _barlow,
        {"hidden": 512, "dim": 512, "lambda_param": 5e-3},
        _each("lambda_param", 1e-3, 2e-2, 5e-2, 1e-1),
    ),
    "vicreg": Method(
        "Lightly's VICRegLoss",
        _vicreg_head,
        _vicreg,
        {"hidden": 512, "dim": 512, "lambda_param": 25.0, "mu_param": 25.0, "nu_param": 1.0},
        ({"nu_param": 4.0}, {"nu_param": 10.0}, {"mu_param": 10.0}, {"lambda_param": 10.0}),
    ),
    "dcl": Method(
        "Lightly's DCLLoss",
        _simclr_head,
        _temperature_loss("DCLLoss"),
        {"hidden": 512, "temperature": 0.1},
        _each("temperature", 0.2, 0.5, 0.7, 1.0),
    ),
    "dclw": Method(
        "Lightly's DCLWLoss",
        _simclr_head,
        _dclw,
        {"hidden": 512, "temperature": 0.1, "sigma": 0.5},
        _each("temperature", 0.2, 0.5, 0.7, 1.0),
    ),
    "moco": Method(
        "Lightly's NTXentLoss with a queue of momentum keys",
        _head_named("MoCoProjectionHead"),
        _moco,
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
    "byol": Method(
        "Lightly's BYOL heads, momentum target, NegativeCosineSimilarity",
        _head_named("BYOLProjectionHead"),
        _negative_cosine,
        {"hidden": 512, "predictor_hidden": 512, "momentum": 0.99},
        (*_each("momentum", 0.9, 0.95, 0.996), {"predictor_hidden": 128}),
        _predict_target,
        _predictor_named("BYOLPredictionHead"),
        momentum=True,
    ),
    "simsiam": Method(
        "Lightly's SimSiam heads, NegativeCosineSimilarity",
        _head_named("SimSiamProjectionHead"),
        _negative_cosine,
        {"hidden": 512, "predictor_hidden": 128},
        _each("predictor_hidden", 32, 64, 256, 512),
        _predict_other_view,
        _predictor_named("SimSiamPredictionHead"),
    ),
    "tico": Method(
        "Lightly's TiCoLoss with a momentum target",
        _head_named("TiCoProjectionHead"),
        _tico,
        {"hidden": 512, "dim": 256, "beta": 0.9, "rho": 20.0, "momentum": 0.99},
        ({"rho": 8.0}, {"rho": 50.0}, {"momentum": 0.95}, {"rho": 8.0, "momentum": 0.95}),
        _against_target,
        momentum=True,
    ),
    "lejepa": Method(
        "Lightly's LeJEPALoss on two views",
        _vicreg_head,
        _lejepa,
        {"hidden": 512, "lambda_param": 0.05, "num_vectors": 256},
        _each("lambda_param", 0.02, 0.1, 0.2, 0.5),
        _global_and_local,
    ),
    "visreg": Method(
        "Lightly's VISRegLoss on two views",
        _vicreg_head,
        _visreg,
        {"hidden": 512, "lambda_param": 0.9, "num_slices": 256},
        _each("lambda_param", 0.5, 0.7, 0.8, 0.95),
        _global_and_local,
    ),
}

# The floor under every comparison: the encoder as initialised, never trained.
UNTRAINED = "untrained"
