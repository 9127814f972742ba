"""The arguments of a monitor that the environment or a run's config asks for."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import Any

VARIABLE = "HSPLUGIN_MONITOR"
OFF = ("", "0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")
_told: set[str] = set()


def tell(error: Exception) -> None:
    """Warn of a mistake once, however many Trainers there are."""
    if str(error) not in _told:
        _told.add(str(error))
        warnings.warn(f"geometry monitor: not started: {error}", stacklevel=2)


def environment_options(setting: str) -> dict[str, Any] | None:
    """The monitor's arguments from the environment variable, or None if it is off.

    Raises:
        ValueError: If it is neither on, off, nor arguments such as "every_n_steps=10".
    """
    if setting.lower() in OFF:
        return None
    if setting.lower() in _ON:
        return {}
    options = {}
    known = _arguments()
    for part in setting.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(
                f"{VARIABLE}={setting!r}: {part.strip()!r} is no argument; set it to 1, or to "
                "arguments such as 'every_n_steps=10,metrics=rankme+lidar'"
            )
        options[name] = _parsed(name, value, known)
    _check(options, VARIABLE)
    return options


def config_options(cfg: Any, asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the monitor's arguments from a run's config, or None if it is off.

    Args:
        cfg: The config of a run; anything but an OmegaConf config is ignored.
        asked: The arguments that the environment asks for, which those of the config override, or
            None if it does not ask.

    Raises:
        TypeError: If the section is no mapping.
        ValueError: If it has an unknown key.
    """
    omegaconf: Any = sys.modules.get("omegaconf")
    section = None
    if omegaconf is not None and isinstance(cfg, omegaconf.DictConfig):
        section = omegaconf.OmegaConf.select(cfg, "hsplugin.monitor")
    if section is None:
        return None if asked is None else dict(asked)
    if not isinstance(section, omegaconf.DictConfig):
        raise TypeError(
            f"hsplugin.monitor must be a mapping such as {{enabled: True}}, got {section!r}"
        )
    options: Any = omegaconf.OmegaConf.to_container(section, resolve=True)
    if not options.pop("enabled", True):
        return None
    _check(options, "hsplugin.monitor", "enabled")
    return {**(asked or {}), **options}


def _arguments() -> dict[str, inspect.Parameter]:
    from hsplugin.monitor import GeometryMonitorMixin

    parameters = inspect.signature(GeometryMonitorMixin).parameters
    return {name: known for name, known in parameters.items() if name != "extract"}


def _check(options: Mapping[str, Any], where: str, *others: str) -> None:
    from hsplugin.checks import unknown

    known = _arguments()
    for name in options:
        if name not in known:
            raise ValueError(unknown(f"key of {where}", name, {*known, *others}))


def _parsed(name: str, value: str, known: Mapping[str, inspect.Parameter]) -> Any:
    """A value of the environment: a number, a switch, a name, or names joined by "+"."""
    if name in known and isinstance(known[name].default, bool):
        if value.lower() not in (*_ON, *OFF):
            raise ValueError(f"{VARIABLE}: {name} is on or off, got {value!r}")
        return value.lower() in _ON
    if value.removeprefix("-").isdecimal():
        return int(value)
    if "+" in value or name == "metrics":
        return [name.strip() for name in value.split("+")]
    return value
