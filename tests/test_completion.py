"""Public names are seen by completion: of source text, as editors do it, and of live objects."""

from __future__ import annotations

import importlib
import sys

import pytest

jedi = pytest.importorskip("jedi")

PACKAGES = (
    "hsplugin",
    "hsplugin.metrics",
    "hsplugin.metrics.functional",
    "hsplugin.monitor",
    "hsplugin_lightly",
    "hsplugin_sentence_transformers",
    "hsplugin_solo",
    "hsplugin_stable_pretraining",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_editor_completes_every_public_name(package: str) -> None:
    text = f"import {package.partition('.')[0]}\n{package}."
    project = jedi.Project(".", sys_path=sys.path)
    offered = {found.name for found in jedi.Script(text, project=project).complete()}
    assert set(importlib.import_module(package).__all__) <= offered


@pytest.mark.parametrize("package", PACKAGES)
def test_a_live_session_lists_every_public_name(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))


def test_the_functions_need_no_import_of_their_own() -> None:
    import hsplugin

    assert hsplugin.metrics.functional.rankme is hsplugin.metrics.rankme.rankme
