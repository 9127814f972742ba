from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.solo.running import python

pytest.importorskip("hydra")

UNRELATED = """
    import sys, time
    {before}
    import hydra
    from hydra.core.plugins import Plugins
    from hydra.core.global_hydra import GlobalHydra

    @hydra.main(version_base="1.2", config_path=None)
    def main(cfg):
        loader = GlobalHydra.instance().config_loader()
        print("configs:", loader.list_groups(""), loader.get_group_options(""))
        print("sources:", [source.provider for source in loader.get_sources()])
        plugins = [p.__name__ for p in Plugins.instance().discover()]
        print("plugin found:", "HspluginSearchPathPlugin" in plugins)
        print("heavy:", sorted({{"torch", "solo", "hsplugin", "lightning"}} & set(sys.modules)))
        print("seconds:", Plugins.instance().get_stats().modules_import_time[
            "hydra_plugins.hsplugin"])

    main()
"""


def program(folder: Path, before: str = "") -> Path:
    script = folder / "program.py"
    script.write_text(textwrap.dedent(UNRELATED).format(before=before))
    return script


def test_an_unrelated_program_sees_nothing_of_ours_and_hardly_waits(tmp_path: Path) -> None:
    out = python(program(tmp_path), cwd=tmp_path)
    assert "plugin found: True" in out
    assert "align_uniform" not in out
    assert "'hsplugin'" not in out.split("plugin found")[0]
    assert "heavy: []" in out
    # The minimum of three: the first run reads the disk, and the machine may be busy.
    runs = [out, *(python(program(tmp_path), cwd=tmp_path) for _ in range(2))]
    assert min(float(run.split("seconds:")[1]) for run in runs) < 0.02


@pytest.mark.parametrize(
    "before",
    [
        # Absent; broken while it is imported; half imported, without METHODS; another's METHODS.
        "",
        "import importlib\ntry:\n    import solo.methods\nexcept RuntimeError: pass",
        "import types; sys.modules['solo.methods'] = types.ModuleType('solo.methods')",
        "import types; m = sys.modules['solo.methods'] = types.ModuleType('m'); m.METHODS = [1]",
        "sys.modules['solo.methods'] = None",
    ],
    ids=["absent", "broken", "half-imported", "another", "blocked"],
)
def test_an_unrelated_program_runs_whatever_state_solo_learn_is_in(
    tmp_path: Path, before: str
) -> None:
    broken = tmp_path / "solo" / "methods"
    broken.mkdir(parents=True)
    (broken.parent / "__init__.py").touch()
    (broken / "__init__.py").write_text("raise RuntimeError('broken on import')")
    out = python(program(tmp_path, before), cwd=tmp_path)
    assert "plugin found: True" in out and "align_uniform" not in out


def test_methods_that_cannot_be_extended_leave_the_program_running(tmp_path: Path) -> None:
    before = (
        "import types; m = sys.modules['solo.methods'] = types.ModuleType('solo.methods'); "
        "m.METHODS = {'simclr': object}"
    )
    out = python(program(tmp_path, before), cwd=tmp_path)
    assert "hsplugin: its solo-learn methods are unavailable" in out
    assert "plugin found: True" in out and "'hsplugin'" not in out.split("plugin found")[0]


@pytest.mark.solo
def test_a_program_that_loads_solo_learn_first_finds_methods_and_configs(
    solo: Path, tmp_path: Path
) -> None:
    before = f"sys.path.insert(0, {str(solo)!r}); from solo.methods import METHODS"
    script = program(tmp_path, before)
    script.write_text(script.read_text().replace("main()\n", "main()\nprint(sorted(METHODS))\n"))
    out = python(script, cwd=tmp_path)
    assert "'hsplugin'" in out.split("plugin found")[0]
    for name in ("align_uniform", "align_uniform_moco", "byol_au"):
        assert repr(name) in out.split("seconds")[1]


@pytest.mark.solo
def test_the_route_by_yaml_registers_before_the_job(solo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        textwrap.dedent(
            """
            hydra:
              callbacks:
                hsplugin:
                  _target_: hsplugin_solo.hydra_callback.Register
            """
        )
    )
    (tmp_path / "late.py").write_text(
        textwrap.dedent(
            f"""
            import sys, hydra
            sys.path.insert(0, {str(solo)!r})

            @hydra.main(version_base="1.2", config_path=".", config_name="mine")
            def main(cfg):
                from solo.methods import METHODS
                print("registered:", "align_uniform" in METHODS)

            main()
            """
        )
    )
    assert "registered: True" in python(tmp_path / "late.py", cwd=tmp_path)
