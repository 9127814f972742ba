"""The objective over solo-learn's crops, and its settings in solo-learn's configs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from hsplugin import AlignUniformLoss, AlignUniformTerms
from hsplugin.checks import check_integer, unknown

OBJECTIVE = ("align_weight", "uniform_weight", "alpha", "t")
# Default of a setting that the config must give.
REQUIRED = "???"
# Settings in the configs of solo-learn's own methods. Ours ignore them, so that such a config
# serves with nothing but another method; every other unknown setting is refused.
OF_OTHER_METHODS = frozenset(
    [
        "base_tau_momentum",
        "cov_loss_weight",
        "decoder_depth",
        "decoder_embed_dim",
        "decoder_num_heads",
        "epoch_queue_starts",
        "final_tau_momentum",
        "freeze_prototypes_epochs",
        "iternorm",
        "lamb",
        "mask_ratio",
        "momentum_classifier",
        "norm_last_layer",
        "norm_pix_loss",
        "num_prototypes",
        "pred_hidden_dim",
        "proj_hidden_dim",
        "proj_output_dim",
        "queue_size",
        "scale_loss",
        "sim_loss_weight",
        "supervised",
        "temperature",
        "temperature_k",
        "temperature_q",
        "var_loss_weight",
        "warmup_teacher_temperature_epochs",
        "whitening_size",
    ]
)


class ManyCropLoss(nn.Module):
    r"""The paper's training loss for any number of crops, over the batches of every rank.

    .. math::
        w_a \operatorname*{mean}_{(i, j)} \mathrm{align}_\alpha(z_i, z_j)
        + w_u \operatorname*{mean}_i \mathrm{uniform}_t(z_i)

    Alignment is averaged over the pairs of crops with at least one large crop (a small crop may
    share nothing with another small crop), uniformity over the crops. For two large crops this is
    :class:`hsplugin.AlignUniformLoss`. Features are normalised here, once for each crop.

    Args:
        settings: ``align_weight``, ``uniform_weight``, ``alpha`` and ``t``, as
            :class:`hsplugin.AlignUniformLoss` takes them.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If a setting is out of its range.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.loss = AlignUniformLoss(**settings, gather_distributed=True)

    def forward(self, crops: Sequence[Tensor], num_large_crops: int) -> AlignUniformTerms:
        """Return the loss and its terms for features (N, d) of each crop, large ones first.

        Raises:
            TypeError: If a crop's features are no floating-point tensor, or dtypes differ.
            ValueError: If there are fewer than two crops or no large one, or crops differ in shape
                or device.
        """
        pairs = [pair for pair in combinations(range(len(crops)), 2) if pair[0] < num_large_crops]
        if not pairs:
            raise ValueError(
                f"alignment needs two crops of an image, one of them large; got {len(crops)} "
                f"crop(s), {num_large_crops} of them large: set num_crops in the augmentations"
            )
        return self.loss.of_views({f"crop {i}": crop for i, crop in enumerate(crops)}, pairs)


def fill_settings(
    cfg: DictConfig,
    section: str,
    defaults: Mapping[str, Any],
    method: str,
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """Write defaults into a section of the config and return its settings.

    A temperature determines the objective's settings, as
    :meth:`hsplugin.AlignUniformLoss.from_temperature` does.

    Args:
        cfg: The run's config, changed in place.
        section: Dotted name of the section, such as ``"method_kwargs"``.
        defaults: Every setting with its default, which null in the config stands for too;
            ``REQUIRED`` marks a setting that must be given.
        method: Name of the method, for messages.
        ignored: Names of others' settings, which may stand in the section.

    Raises:
        ValueError: If a setting is missing or unknown, or contradicts the temperature.
    """
    given = OmegaConf.select(cfg, section)
    given = DictConfig({}) if given is None else given
    if not isinstance(given, DictConfig):
        raise ValueError(f"{section} of {method} must be a mapping of settings, got {given!r}")
    for key in map(str, given):
        if key not in defaults and key not in ignored:
            raise ValueError(unknown(f"setting in {section} of {method}", key, defaults))
    by_temperature = _by_temperature(given, section, method)
    settings = {}
    for key, default in defaults.items():
        value = given.get(key)
        if key in by_temperature:
            if value is not None and value != by_temperature[key]:
                raise ValueError(
                    f"{section}.temperature={given.temperature} of {method} determines {key}, "
                    f"{by_temperature[key]:g}, got {key}={value} too: drop one of them "
                    f"({section}.{key}=null)"
                )
            value = by_temperature[key]
        value = default if value is None else value
        if value == REQUIRED:
            raise ValueError(f"{method} needs {section}.{key}; add it to the config")
        settings[key] = value
        OmegaConf.update(cfg, f"{section}.{key}", value, force_add=True)
    return settings


def _by_temperature(given: DictConfig, section: str, method: str) -> dict[str, float]:
    """The objective's settings that a temperature in the section determines, or none."""
    temperature = given.get("temperature")
    if temperature is None:
        return {}
    try:
        loss = AlignUniformLoss.from_temperature(temperature)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section} of {method}: {error}") from error
    return {name: getattr(loss, name) for name in OBJECTIVE}


def check_objective(settings: Mapping[str, Any], section: str, method: str) -> dict[str, float]:
    """Return the objective's own settings after checking them.

    Raises:
        ValueError: Naming the setting, what was given and what is wanted.
    """
    objective = {name: settings[name] for name in OBJECTIVE}
    try:
        AlignUniformLoss(**objective)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section} of {method}: {error}") from error
    return objective


def check_counts(settings: Mapping[str, Any], names: Sequence[str], method: str) -> None:
    """Refuse sizes that are not integers of 1 or more.

    Raises:
        ValueError: Naming the setting, what was given and what is wanted.
    """
    for name in names:
        try:
            check_integer(f"method_kwargs.{name} of {method}", settings[name], least=1)
        except (TypeError, ValueError) as error:
            raise ValueError(str(error)) from error
