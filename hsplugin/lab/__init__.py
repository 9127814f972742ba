"""What runs are made of: their settings, folders and processes, and how one encoder is trained.

`runs.run_all` and `runs.collect` are what ``hsplugin compare`` and ``hsplugin sweep`` build on.
"""
