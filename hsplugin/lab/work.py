"""One run in a process of its own, from its lock to the event that ends it."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.lab import train
from hsplugin.lab.files import machine_error, remove_leftovers, write_json
from hsplugin.lab.locks import held
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings


def perform(
    settings: RunSettings,
    machine: Machine,
    run: Run,
    notify: train.Notify,
    start: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do one run and say how it ended.

    Whoever else may hold the run's folder, on whatever machine, is waited for.

    Args:
        settings: What to run.
        machine: Where to run it.
        run: Its folder.
        notify: Called with the progress after each epoch.
        start: Called when the folder is held, before the training of an unfinished run.

    Returns:
        The last event: ``{"done": True}``; ``{"failed": reason}``; or ``{"fatal": reason}`` where
        every other run would fail alike.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with held(run.folder):
            remove_leftovers(run.folder)
            if not run.finished:
                write_json(run.job, {"settings": settings.as_dict(), "machine": asdict(machine)})
                # Lightning starts the further processes of a DDP run with this very command,
                # unless the main module came from a -m flag.
                sys.argv = [str(train.__file__), str(run.folder)]
                sys.modules["__main__"].__spec__ = None
                start()
                train.train(settings, machine, run, notify)
        return {"done": True}
    except CommandError as error:
        return {"fatal": str(error)}
    except OSError as error:
        return {"fatal": machine_error(error, run.folder)}
    except Exception as error:
        if "No space left" in str(error) or "file write failed" in str(error):
            return {"fatal": machine_error(OSError(errno.ENOSPC, ""), run.folder)}
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        with suppress(OSError):
            run.error_log.write_text(traceback.format_exc())
        return {"failed": f"{type(error).__name__}: {reason}"}
