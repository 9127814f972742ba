"""Register our methods where solo-learn's scripts look them up by name."""

from __future__ import annotations

from typing import Any, NoReturn

# Entries of solo.methods.METHODS that are not pretraining methods.
_NOT_METHODS = ("base", "linear")


def register() -> None:
    """Add our methods to ``solo.methods.METHODS``; calling it again changes nothing.

    Adds ``align_uniform``, ``align_uniform_moco`` and, for every pretraining method registered so
    far (including the user's own), ``<method>_au``: that method with alignment and uniformity added
    to its loss. Names that exist already are not changed.

    Raises:
        ImportError: If solo-learn cannot be imported.
    """
    try:
        from solo.methods import METHODS
    except ImportError as error:
        raise ImportError(
            f"solo-learn cannot be imported ({error}); run from a clone of "
            "https://github.com/vturrisi/solo-learn with its requirements installed "
            "(pip install 'hsplugin[solo]')"
        ) from error
    from hsplugin_solo.auxiliary import with_align_uniform
    from hsplugin_solo.methods import AlignUniform, AlignUniformMoCo

    theirs = {
        name: method
        for name, method in METHODS.items()
        if name not in _NOT_METHODS and not name.endswith("_au")
    }
    METHODS.setdefault("align_uniform", AlignUniform)
    METHODS.setdefault("align_uniform_moco", AlignUniformMoCo)
    for name, method in theirs.items():
        if method in (AlignUniform, AlignUniformMoCo):
            continue
        try:
            METHODS.setdefault(f"{name}_au", with_align_uniform(method))
        except (TypeError, ValueError) as error:
            METHODS.setdefault(f"{name}_au", _refusal(str(error)))


def _refusal(reason: str) -> Any:
    """A stand-in for an impossible method, which raises the reason when it is built."""

    def refuse(cfg: Any) -> NoReturn:
        raise ValueError(reason)

    return refuse
