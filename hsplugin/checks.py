"""What a caller may pass, checked by looking at shapes and types only.

No check here reads the values of a tensor: in a training step that would make the host wait for
the GPU, and NaN has to reach the loss, where a gradient scaler looks for it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor

# Rows shorter than this have no direction worth following; the derivative of the direction, which
# is one over the length, would be all that an optimiser sees.
SHORTEST_ROW = 1e-6
# What exponents and gradients are multiplied by, up to 4t, has to fit into float32.
T_LIMIT = 1e37


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
            f"convert it with .float() if these are features"
        )
    if features.dim() != 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape (N, d) with d >= 1, got {tuple(features.shape)}; "
            f"use .flatten(1) for one vector a sample"
        )
    if features.shape[0] < min_rows:
        raise ValueError(
            f"{name} has {features.shape[0]} row(s) but at least {min_rows} are needed: "
            f"{'a pair takes two' if min_rows == 2 else 'it is empty'}; use a larger batch "
            f"(drop_last=True keeps a data loader from ending on a small one)"
        )


def check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor, *, min_rows: int = 1) -> None:
    """Refuse what are not two views: features of one shape, dtype and device.

    Raises:
        TypeError: As :func:`check_features`, or if they differ in dtype.
        ValueError: As :func:`check_features`, or if they differ in shape or device.
    """
    check_features(name_a, a, min_rows=min_rows)
    check_features(name_b, b, min_rows=min_rows)
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must be two views of the same samples with one shape, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    check_compatible(name_a, a, name_b, b)


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
    if type(value) is float and 0 < value < math.inf:  # what a small batch would notice
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


def check_integer(name: str, value: object, *, least: int) -> int:
    """Return a whole number that is large enough.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}: {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, which near matches exist, and what is known.

    Args:
        what: What the name stands for, such as ``"method"``.
        given: The name as the user wrote it.
        known: Every name that would have been understood.

    Example:
        >>> unknown("method", "simclrr", ["simclr", "byol"])
        "unknown method 'simclrr'; did you mean simclr? Known: byol, simclr"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {what} {given!r}; {hint}Known: {', '.join(names)}"


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which features are computed with: float64 as it is, all others float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
