"""Train every method under one budget, then measure geometry and accuracy side by side.

``hsplugin compare`` is the command; `runs.run_all` and `runs.collect` are what other
commands build on.
"""
