"""Registration from YAML: a Hydra callback that registers our methods before a job runs."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback

from hsplugin_solo.registry import register


class Register(Callback):
    """Call :func:`hsplugin_solo.register` at the start of each job.

    For configs that name their dependencies and do not rely on the automatic plugin::

        hydra:
          searchpath: [pkg://hsplugin_solo.conf]
          callbacks:
            hsplugin:
              _target_: hsplugin_solo.hydra_callback.Register
    """

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Register; errors reach the user."""
        register()
