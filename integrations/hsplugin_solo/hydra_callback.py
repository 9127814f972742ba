"""The route by YAML: a Hydra callback that registers our methods before a job runs."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback

from hsplugin_solo.registry import register


class Register(Callback):
    """Call :func:`hsplugin_solo.register` at the start of each job.

    For configs that state what they need rather than rely on the plugin that finds solo-learn::

        hydra:
          searchpath: [pkg://hsplugin_solo.conf]
          callbacks:
            hsplugin:
              _target_: hsplugin_solo.hydra_callback.Register
    """

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Register; an error here is the user's to see."""
        register()
