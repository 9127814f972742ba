"""The geometry monitor for scripts that build their own Trainer: opt in, off by default.

Lightning calls :func:`callbacks` for every Trainer in this environment (entry-point groups
``lightning.pytorch.callbacks_factory`` and ``pytorch_lightning.callbacks_factory``). The monitor is
added if the environment asks for it, ``HSPLUGIN_MONITOR=1`` or with arguments of GeometryMonitor::

    HSPLUGIN_MONITOR="every_n_steps=10,metrics=rankme+lidar,module=backbone+projection_head"

or if the module has a config, as solo-learn's methods do, with a section ``hsplugin.monitor``::

    hsplugin:
      monitor:
        enabled: True           # False overrides HSPLUGIN_MONITOR
        every_n_steps: 50       # any argument of GeometryMonitor except extract

On the command line of an unchanged config: ``+hsplugin.monitor.every_n_steps=50``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hsplugin.monitor.options import OFF, VARIABLE, environment_options, tell


def callbacks() -> list[Any]:
    """Return callbacks for a new Trainer: none unless asked, or solo-learn is loaded."""
    setting = os.environ.get(VARIABLE, "").strip()
    if setting.lower() in OFF and "solo.methods" not in sys.modules:
        return []
    try:
        from hsplugin.monitor.opt_in_callback import OptInMonitor

        return [OptInMonitor(environment_options(setting))]
    except Exception as error:
        tell(error)
        return []
