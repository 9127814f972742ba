"""Command-line flags, config files and bounds, all from the fields of dataclasses.

A dataclass whose fields are made by `setting` is a table: `add_flags` turns its fields into
flags, `complete` reads the same names from a YAML file, and `check` enforces the bounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, NoReturn

from hsplugin.checks import check_integer, check_number, check_positive, unknown
from hsplugin.errors import CommandError


def setting(
    default: Any,
    group: str,
    about: str,
    *,
    least: float | None = None,
    most: int = 2**31,
    choices: Sequence[str] | None = None,
    unset: str = "",
) -> Any:
    """A dataclass field with a flag.

    Args:
        default: The field's default, an integer, float or text; None, which then is a value too.
        group: Heading of its group of flags.
        about: Help text of the flag.
        least: Smallest value; without one, an integer may be any and a float must be positive.
        most: Largest value of an integer.
        choices: The only values of a text; the flag takes ``unset`` beside them.
        unset: What the command uses without the flag, where that is not the field's default.
    """
    bounds = {"least": least, "most": most, "choices": choices}
    return field(
        default=default, metadata={"group": group, "help": about, "unset": unset, **bounds}
    )


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _settings(*tables: Any) -> list[Field[Any]]:
    return [entry for table in tables for entry in fields(table) if entry.metadata]


def _kind(entry: Field[Any]) -> type:
    return {"bool": bool, "int": int, "float": float, "str": str}[str(entry.type).split(" | ")[0]]


def check(table: Any, values: Mapping[str, Any], label: Callable[[str], str] = str) -> None:
    """Refuse values that the settings of a table cannot have.

    Args:
        table: The dataclass.
        values: Field name -> value; other names are skipped.
        label: Turns a field's name into what an error calls it, such as `flag`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its bounds.
    """
    for entry in _settings(table):
        if entry.name not in values or (values[entry.name] is None and entry.default is None):
            continue
        name, value, kind = label(entry.name), values[entry.name], _kind(entry)
        least, most, choices = (entry.metadata[key] for key in ("least", "most", "choices"))
        if kind is int:
            check_integer(name, value, least=-(2**31) if least is None else least, most=most)
        elif kind is float:
            number = check_positive(name, value) if least is None else check_number(name, value)
            if least is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        elif kind is bool:
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be true or false, got {value!r}")
        elif not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {type(value).__name__}: {value!r}")
        elif choices and value not in choices:
            raise ValueError(unknown(name, value, choices))


def defaults_of(*tables: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Setting -> default of its flag, None where the command has to find it (``unset``)."""
    return {
        entry.name: None if entry.metadata["unset"] else entry.default
        for entry in _settings(*tables)
        if entry.name not in without
    }


class _Once(argparse._StoreAction):
    """An option that is refused when it is given a second time, which would hide the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: Any, values: Any, option: str | None = None
    ) -> None:
        if hasattr(args, self.dest):
            parser.error(f"{option} is given twice")
        setattr(args, self.dest, values)


def add_flags(parser: argparse.ArgumentParser, *tables: Any, defaults: Mapping[str, Any]) -> None:
    """Declare the flags of all settings that a command has a default for, and ``--config``.

    A flag that is not given is absent from the result, so that a config file may give it.
    """
    parser.argument_default = argparse.SUPPRESS
    parser.register("action", None, _Once)
    parser.add_argument("--config", help="YAML file with any of these flags; flags win over it")
    groups = {}
    for entry in _settings(*tables):
        if entry.name not in defaults:
            continue
        title, default = entry.metadata["group"], entry.metadata["unset"] or defaults[entry.name]
        choices, unset = entry.metadata["choices"], entry.metadata["unset"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        about = entry.metadata["help"]
        if _kind(entry) is bool:
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "help": about}
        else:
            how = {
                "type": _kind(entry),
                "choices": (unset, *choices) if choices and unset else choices,
                "help": about + ("" if default is None else f"; default: {default}"),
            }
        groups[title].add_argument(flag(entry.name), **how)


class _FileParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{self.prog}: {message}")


def complete(
    args: argparse.Namespace,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    defaults: Mapping[str, Any],
) -> argparse.Namespace:
    """Fill in what the command line leaves open: from the config file, then from the defaults.

    A config file holds the flags as YAML, with a list where a flag takes several values and
    ``set: {simclr: {temperature: 0.2}}`` for the options of methods, which --set overrides, and
    ``slurm: {qos: high}`` for the parameters of jobs.

    Args:
        args: What the command line says.
        add_arguments: Declares the command's flags.
        defaults: The command's defaults; its keys are the flags that a file may hold.

    Raises:
        CommandError: The file cannot be read, or holds an unknown flag or an impossible value.
    """
    given, from_file = vars(args), {}
    if "config" in given:
        parser = _FileParser(prog=given["config"], add_help=False, allow_abbrev=False)
        add_arguments(parser)
        from_file = vars(parser.parse_args(_as_flags(Path(given["config"]), defaults)))
    merged = {**defaults, **from_file, **given}
    targets = [text.partition("=")[0] for text in given.get("set", [])]
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise CommandError(f"--set gives {twice[0]} twice; for several values write a list")
    for name in ("set", "slurm"):
        if name in merged:
            merged[name] = [*from_file.get(name, []), *given.get(name, [])]
    return argparse.Namespace(**merged)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        CommandError: The file cannot be read or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CommandError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: It is not YAML, or a mapping has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
                raise ValueError(f"{twice[0]} is given twice")
            content: dict[Any, Any] = super().construct_mapping(node, deep)
            return content

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(str(error) or "nested too deeply") from None


def _slurm_texts(path: Path, key: str) -> list[str]:
    """Parameters of jobs as they are written: YAML would take a time or 007 for a number."""
    import yaml

    texts = yaml.load(path.read_text(), yaml.BaseLoader)[key]
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return texts
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CommandError(f"{path}: {key} must map parameters of sbatch to their values")
    return [f"{parameter}={text}" for parameter, text in texts.items()]


def _as_flags(path: Path, defaults: Mapping[str, Any]) -> list[str]:
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise CommandError(f"{path} must map flags to values")
    flags: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in defaults:
            known = [flag(known)[2:] for known in defaults]
            raise CommandError(f"{path}: {unknown('flag', str(key), known)}")
        if name == "set" and value is not None and not isinstance(value, list):
            each = value.values() if isinstance(value, dict) else [value]
            if not all(isinstance(options, dict) for options in each):
                raise CommandError(f"{path}: {key} must map methods to their options and values")
            value = [f"{m}.{o}={v}" for m, options in value.items() for o, v in options.items()]
        elif name == "slurm" and value is not None:
            value = _slurm_texts(path, key)
        if isinstance(value, bool) and isinstance(defaults[name], bool):
            flags.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, list):
            flags += [flag(name), *map(str, value)]
        elif value is not None:
            flags.append(f"{flag(name)}={value}")
    return flags
