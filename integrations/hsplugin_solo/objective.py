"""The objective over solo-learn's crops, and its settings in solo-learn's configs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from hsplugin import AlignUniformLoss, AlignUniformTerms
from hsplugin.checks import check_integer

OBJECTIVE = ("align_weight", "uniform_weight", "alpha", "t")


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
    cfg: DictConfig, section: str, defaults: Mapping[str, Any], method: str
) -> dict[str, Any]:
    """Write defaults into a section of the config and return its settings.

    Args:
        cfg: The run's config, changed in place.
        section: Dotted name of the section, such as ``"method_kwargs"``.
        defaults: Every setting with its default; ``None`` marks a setting that must be given.
        method: Name of the method, for messages.

    Raises:
        ValueError: If a setting is missing, or a key looks like a misspelt setting.
    """
    given = OmegaConf.select(cfg, section)
    given = DictConfig({}) if given is None else given
    if not isinstance(given, DictConfig):
        raise ValueError(f"{section} of {method} must be a mapping of settings, got {given!r}")
    unused = [str(key) for key in given if key not in defaults]
    for key in unused:
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.8)
        if near and near[0] not in given:
            raise ValueError(f"{method} has no {section}.{key}; did you mean {near[0]}?")
    settings = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if value is None or value == "???":
            raise ValueError(f"{method} needs {section}.{key}; add it to the config")
        settings[key] = value
        OmegaConf.update(cfg, f"{section}.{key}", value, force_add=True)
    return settings


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
