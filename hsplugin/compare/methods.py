"""One table: the name of a method, and its recipe from Lightly's own losses and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hsplugin.errors import CommandError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hsplugin.compare.train import Learner

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
        step: Computes the loss of two views; the default is criterion(z_a, z_b).
    """

    about: str
    head: Callable[[int, Options], nn.Module]
    criterion: Callable[[Options], nn.Module]
    defaults: Options = field(default_factory=dict)
    step: Callable[[Learner, Tensor, Tensor], Tensor] | None = None


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


def _barlow_head(features: int, options: Options) -> nn.Module:
    from lightly.models.modules.heads import BarlowTwinsProjectionHead

    return BarlowTwinsProjectionHead(features, options["hidden"], options["dim"])


def _vicreg_head(features: int, options: Options) -> nn.Module:
    from lightly.models.modules.heads import VICRegProjectionHead

    return VICRegProjectionHead(features, options["hidden"], options["dim"], num_layers=2)


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


def _ntxent(options: Options) -> nn.Module:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=options["temperature"], gather_distributed=options["gather"])


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


METHODS: dict[str, Method] = {
    "align_uniform": Method(
        "this package: alignment + uniformity, with its defaults alpha = 2, t = 2",
        _simclr_head,
        _align_uniform,
        {"hidden": 512, "align_weight": 1.0, "uniform_weight": 1.0, "alpha": 2.0, "t": 2.0},
    ),
    "hypersphere": Method(
        "Lightly's HypersphereLoss, with its default t = 1",
        _simclr_head,
        _hypersphere,
        {"hidden": 512, "t": 1.0, "lam": 1.0, "alpha": 2.0},
    ),
    "simclr": Method(
        "Lightly's NTXentLoss",
        _simclr_head,
        _ntxent,
        {"hidden": 512, "temperature": 0.5},
    ),
    "barlowtwins": Method(
        "Lightly's BarlowTwinsLoss",
        _barlow_head,
        _barlow,
        {"hidden": 512, "dim": 512, "lambda_param": 5e-3},
    ),
    "vicreg": Method(
        "Lightly's VICRegLoss",
        _vicreg_head,
        _vicreg,
        {"hidden": 512, "dim": 512, "lambda_param": 25.0, "mu_param": 25.0, "nu_param": 1.0},
    ),
}

# The floor under every comparison: the encoder as initialised, never trained.
UNTRAINED = "untrained"
