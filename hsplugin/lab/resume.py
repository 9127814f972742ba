"""Whether a run can go on from its checkpoint, which others may have damaged or replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hsplugin.lab.files import read_torch
from hsplugin.lab.learner import Learner
from hsplugin.lab.run import Run


def can_resume(run: Run, learner: Learner, notify: Callable[[dict[str, Any]], None]) -> bool:
    """Whether there is a checkpoint of this very run; another file is set aside."""
    if not run.checkpoint.exists():
        return False
    try:
        checkpoint = read_torch(run.checkpoint)
        if checkpoint.get("run") != learner.run:
            raise ValueError("it is of other settings or another version")
        ours, theirs = learner.state_dict(), checkpoint["state_dict"]
        if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
            raise ValueError("it is of other networks")
        # Lightning goes on without what it does not find.
        for name in ("optimizer_states", "lr_schedulers"):
            if len(checkpoint[name]) != 1:
                raise ValueError(f"it has {len(checkpoint[name])} {name}")
        if "fit_loop" not in checkpoint["loops"]:
            raise ValueError("it lacks the epoch")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        set_aside(run, error, notify)
        return False
    return True


def set_aside(run: Run, error: Exception, notify: Callable[[dict[str, Any]], None]) -> None:
    """Rename a checkpoint that cannot be loaded, and tell the user."""
    aside = run.set_aside(run.checkpoint)
    reason = " ".join(str(error).split())
    notify({"note": f"cannot resume ({reason}), so it starts anew; see {aside}"})
