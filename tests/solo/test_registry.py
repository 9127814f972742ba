from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.solo.running import python

pytestmark = pytest.mark.solo

STOCK = [
    "all4one",
    "barlow_twins",
    "byol",
    "deepclusterv2",
    "dino",
    "mae",
    "mocov2plus",
    "mocov3",
    "nnbyol",
    "nnclr",
    "nnsiam",
    "ressl",
    "simclr",
    "simsiam",
    "supcon",
    "swav",
    "vibcreg",
    "vicreg",
    "wmse",
]


def test_every_stock_method_keeps_its_class_and_gains_a_companion(methods: dict[str, Any]) -> None:
    from hsplugin_solo import AlignUniform, AlignUniformMoCo

    assert methods["align_uniform"] is AlignUniform
    assert methods["align_uniform_moco"] is AlignUniformMoCo
    ours = {"align_uniform", "align_uniform_moco", *(f"{name}_au" for name in STOCK)}
    assert set(methods) == {"base", "linear", *STOCK, *ours}
    for name in set(STOCK) - {"mae"}:
        assert methods[name].__module__.startswith("solo.methods")
        assert issubclass(methods[f"{name}_au"], methods[name])


def test_registering_again_changes_nothing(methods: dict[str, Any]) -> None:
    from hsplugin_solo import register

    before = dict(methods)
    register()
    assert methods == before


def test_a_method_of_the_users_gains_a_companion_and_a_taken_name_stays(
    methods: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hsplugin_solo import register

    class Mine(methods["byol"]):  # type: ignore[misc]
        pass

    monkeypatch.setitem(methods, "mine", Mine)
    monkeypatch.setitem(methods, "byol_au", Mine)
    monkeypatch.delitem(methods, "mine_au", raising=False)
    register()
    try:
        assert issubclass(methods["mine_au"], Mine)
        assert methods["byol_au"] is Mine
    finally:
        del methods["mine_au"]


def test_importing_the_package_imports_neither_torch_nor_solo(tmp_path: Path) -> None:
    heavy = "{'torch', 'solo', 'lightning', 'hydra'} & {*sys.modules}"
    out = python("-c", f"import sys, hsplugin_solo; print({heavy})", cwd=tmp_path)
    assert out.strip() == "set()"


def test_without_solo_learn_registering_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("omegaconf")
    out = python("-c", "import hsplugin_solo; hsplugin_solo.register()", cwd=tmp_path, fails=True)
    assert "solo-learn cannot be imported" in out and "github.com/vturrisi/solo-learn" in out


class TestRun:
    def test_the_script_sees_our_methods_and_its_own_arguments(
        self, solo: Path, tmp_path: Path
    ) -> None:
        for part in ("solo", "main_knn.py"):
            (tmp_path / part).symlink_to(solo / part)
        (tmp_path / "show.py").write_text(
            "import sys\n"
            "from solo.methods import METHODS\n"
            "if __name__ == '__main__':\n"
            "    print(sys.argv, METHODS['align_uniform'].__name__, sys.path[0])\n"
            "    sys.exit(3)\n"
        )
        arguments = ("-m", "hsplugin.cli", "run", "show.py", "--k", "5", "-h")
        out = python(*arguments, cwd=tmp_path, fails=True)
        assert f"['show.py', '--k', '5', '-h'] AlignUniform {tmp_path}" in out

    def test_a_script_that_is_not_there_is_one_line(self, tmp_path: Path) -> None:
        out = python("-m", "hsplugin.cli", "run", "main_kn.py", cwd=tmp_path, fails=True)
        assert out.startswith("hsplugin run: no script 'main_kn.py'") and out.count("\n") == 1

    def test_outside_a_checkout_it_says_so_in_one_line(self, tmp_path: Path) -> None:
        pytest.importorskip("omegaconf")
        (tmp_path / "script.py").write_text("raise SystemExit('ran')")
        out = python("-m", "hsplugin.cli", "run", "script.py", cwd=tmp_path, fails=True)
        assert out.startswith("hsplugin run: solo-learn cannot be imported")
