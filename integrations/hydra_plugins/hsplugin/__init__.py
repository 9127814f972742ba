"""Lets solo-learn's scripts find our methods and configs; does nothing in other Hydra programs.

Hydra imports this module in every program that uses Hydra, so it imports only what Hydra has
imported already, and no error here may reach such a program.
"""

from __future__ import annotations

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class HspluginSearchPathPlugin(SearchPathPlugin):
    """Registers our methods and adds our configs, if the program has loaded solo-learn."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Act once ``solo.methods`` is loaded, which its scripts do before Hydra starts."""
        methods = getattr(sys.modules.get("solo.methods"), "METHODS", None)
        if not isinstance(methods, dict) or "simclr" not in methods:
            return
        try:
            from hsplugin_solo import register

            register()
        except Exception as error:
            print(f"hsplugin: its solo-learn methods are unavailable: {error}", file=sys.stderr)
            return
        search_path.append(provider="hsplugin", path="pkg://hsplugin_solo.conf")
