"""Configs that Hydra reads as ``pkg://hsplugin_solo.conf``."""
