"""Checks of arguments, by shape and type only.

No check reads the values of a tensor: in a training step the host would wait for the GPU, and NaN
must reach the loss, where a gradient scaler looks for it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

# Shorter rows have no meaningful direction. The derivative of the direction, one over the length,
# would dominate every gradient.
SHORTEST_ROW = 1e-6
# Names in one message, and characters of each.
MOST_NAMES = 30
LONGEST_NAME = 60
# Factors of exponents and gradients, up to 4t, must fit into float32.
T_LIMIT = 1e37
# Types of device that have float64 for certain; MPS lacks it, and so do some of XPU and HPU.
WITH_FLOAT64 = {"cpu", "cuda", "meta"}


def check_features(name: str, features: object, *, min_rows: int = 1) -> None:
    """Refuse anything but a floating (N, d) tensor with N >= ``min_rows`` and d >= 1.

    Raises:
        TypeError: If it is no dense tensor, or one of integers, booleans or complex numbers.
        ValueError: If its shape is wrong or it has too few rows.
    """
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of features, got {type(features).__name__}; "
            f"convert it with torch.as_tensor"
        )
    if features.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor of features, got layout {features.layout}; "
            f"convert it with .to_dense()"
        )
    if not features.is_floating_point():
        raise TypeError(
            f"{name} must hold real floating-point features, got {features.dtype}; "
            f"convert it with .float() if these are features, pass classes as labels="
        )
    if features.dim() != 2 or features.size(1) == 0:  # in small batches, .shape takes long
        views = "pass views (N, V, d) to a loss alone, as loss(views), or one by one; "
        raise ValueError(
            f"{name} must have shape (N, d) with d >= 1, got {tuple(features.shape)}; "
            f"{views if features.dim() == 3 else ''}use .flatten(1) for one vector per sample"
        )
    if features.size(0) < min_rows:
        raise ValueError(
            f"{name} has {features.shape[0]} row(s) but at least {min_rows} are needed: "
            f"{'a pair takes two' if min_rows == 2 else 'it is empty'}; use a larger batch "
            f"(drop_last=True keeps a data loader from ending on a small one)"
        )


def check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor, *, min_rows: int = 1) -> None:
    """Refuse tensors that are not two views: features of one shape, dtype and device.

    Raises:
        TypeError: As :func:`check_features`, or if they differ in dtype.
        ValueError: As :func:`check_features`, or if they differ in shape or device.
    """
    check_features(name_a, a, min_rows=min_rows)
    alike = isinstance(b, Tensor) and b.layout == torch.strided and a.shape == b.shape
    if alike and a.dtype == b.dtype and a.device == b.device:
        return
    check_features(name_b, b, min_rows=min_rows)
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must be two views of the same samples with one shape, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    check_compatible(name_a, a, name_b, b)


def check_labels(labels: object, rows: int, device: torch.device | None = None) -> None:
    """Refuse anything but an integer tensor (rows,), on the given device if any.

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If its shape or device is wrong.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"labels must be a torch.Tensor, got {type(labels).__name__}; convert them with "
            f"torch.as_tensor"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}; convert them with .long()")
    if labels.shape != (rows,):
        raise ValueError(
            f"labels must have shape ({rows},), one for each row of features, got "
            f"{tuple(labels.shape)}"
        )
    if device is not None and labels.device != device:
        raise ValueError(
            f"labels must be on the features' device, {device}, got {labels.device}; move them "
            f"with .to(...)"
        )


def check_compatible(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Refuse two sets of features that differ in dimension, dtype or device.

    Raises:
        ValueError: If they differ in dimension or device.
        TypeError: If they differ in dtype.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_a} and {name_b} must have the same dimension d, "
            f"got {a.shape[1]} and {b.shape[1]}"
        )
    if a.dtype != b.dtype:
        raise TypeError(
            f"{name_a} and {name_b} must have one dtype, got {a.dtype} and {b.dtype}; "
            f"convert one with .to(...)"
        )
    if a.device != b.device:
        raise ValueError(
            f"{name_a} and {name_b} must be on one device, got {a.device} and {b.device}; "
            f"move one with .to(...)"
        )


def check_positive(name: str, value: object) -> float:
    """Return a positive finite number as a float.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is not finite or not above zero.
    """
    if type(value) is float and 0 < value < math.inf:  # fast path for small batches
        return value
    number = check_number(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return number


def check_t(t: object) -> float:
    """Return the inverse width of a Gaussian as a float.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is not above zero and at most 1e37.
    """
    number = check_positive("t", t)
    if number > T_LIMIT:
        raise ValueError(
            f"t must be at most {T_LIMIT:g} for float32 to hold what it multiplies, got {t}"
        )
    return number


def check_number(name: str, value: object) -> float:
    """Return a finite number as a float.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    number = float(value)
    if not -math.inf < number < math.inf:  # math.isfinite would break the graph of torch.compile
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def check_integer(name: str, value: object, *, least: int, most: int = 2**63 - 1) -> int:
    """Return an integer from ``least`` to ``most``.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of these bounds.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}: {value!r}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """A message that a name is unknown, with near matches and known names, at most thirty.

    Args:
        what: The kind of name, such as ``"method"``.
        given: The name the user wrote.
        known: Every known name.

    Example:
        >>> unknown("method", "simclrr", ["simclr", "byol"])
        "unknown method 'simclrr'; did you mean simclr? Known: byol, simclr"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {what} {given!r}; {hint}Known: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Names for a message, separated by commas: the first thirty, each at most 60 characters.

    Example:
        >>> listed([f"x{i}" for i in range(1000)])[-28:]
        'x26, x27, x28, x29, 970 more'
    """
    shown = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 3] + "..." for n in names]
    more = len(names) - MOST_NAMES
    return ", ".join(shown[:MOST_NAMES] + ([f"{more} more"] if more > 0 else []))


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of computation: float64 for float64 features, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def summing_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over many rows: float64 where the device of x has it for certain."""
    return torch.float64 if x.device.type in WITH_FLOAT64 else computing_dtype(x.dtype)


def with_float64(device: torch.device) -> torch.device:
    """The device itself, or the CPU if it may lack float64."""
    return device if device.type in WITH_FLOAT64 else torch.device("cpu")
