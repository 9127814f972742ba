"""The rooms of the product: who may import whom, how large each may be, and no circle."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ROOT / "hsplugin",
    *(path for path in (ROOT / "integrations").iterdir() if path.name.startswith("hsplugin_")),
    ROOT / "integrations" / "hydra_plugins",
]
# A room imports from its own tier and from those before it in this list, never from later ones.
TIERS: list[set[str]] = [
    {"checks", "functional", "losses", "positives", "potential", "sphere", "views"},
    {"metrics"},
    {"errors", "flags", "page", "plots", "provenance", "readers"},
    {"", "measure", "monitor"},  # "" is the package itself: its public names
    {"integrations"},
    {"lab"},
    {"bench", "compare", "sweep"},
    {"cli"},
    {"command"},
]
CORE = TIERS[0] | TIERS[1]
PUBLIC = CORE | {"", "errors", "monitor"}
LARGEST_SHARE = 0.2
LONGEST_MODULE = 350
# One kernel launch is planned, checked and started in one place.
LONGER_MODULES = {"hsplugin.potential.triton", "hsplugin.potential.triton_kernels"}
OF_THE_CORE = {*sys.stdlib_module_names, "hsplugin", "numpy", "torch", "torchmetrics"}


def modules_of(packages: list[Path]) -> dict[str, Path]:
    """Every module by its dotted name; a package stands for its ``__init__``."""
    found = {}
    for package in packages:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def names_imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[list[str]]:
    """What each import statement asks for: the most precise name first, then its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ([alias.name] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                up = node.level - is_package
                base = ".".join([*parents[: len(parents) - up], *filter(None, [base])])
            yield from ([f"{base}.{alias.name}", base] for alias in node.names)


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules it imports, in functions and for type checkers too."""
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for names in names_imported(
            ast.parse(path.read_text()), module, path.name == "__init__.py"
        ):
            graph[module].update([name for name in names if name in modules][:1])
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def run_on_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes outside functions and ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            waiting += ast.iter_child_nodes(node)


def room(module: str) -> str:
    """The part of the product that a module belongs to."""
    package, *rest = module.split(".")
    if package == "hsplugin_command":
        return "command"
    return "".join(rest[:1]) if package == "hsplugin" else "integrations"


MODULES = modules_of(PACKAGES)
GRAPH = import_graph(MODULES)


def test_no_circle_of_imports() -> None:
    assert circle(GRAPH) == []


def test_every_room_has_a_tier() -> None:
    assert {room(module) for module in MODULES} <= set().union(*TIERS)


def imports_where(forbidden: Callable[[str, str], bool]) -> list[str]:
    """The imports between rooms that a rule forbids."""
    return [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in sorted(GRAPH[module])
        if forbidden(room(module), room(imported))
    ]


def test_no_import_goes_up() -> None:
    tier = {name: number for number, tier in enumerate(TIERS) for name in tier}
    assert imports_where(lambda here, there: tier.get(here, len(TIERS)) < tier.get(there, -1)) == []


def test_integrations_import_public_rooms_only() -> None:
    public = PUBLIC | {"integrations"}
    assert imports_where(lambda here, there: here == "integrations" and there not in public) == []


def test_the_core_imports_torch_numpy_and_torchmetrics_only() -> None:
    others = []
    for module, path in MODULES.items():
        # The kernels are imported where Triton is known to be there.
        if room(module) not in CORE or module.startswith("hsplugin.potential.triton"):
            continue
        for node in run_on_import(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                [(first, *_), *_] = names_imported(node, module, False)
                if first.split(".")[0] not in OF_THE_CORE:
                    others.append(f"{module} imports {first}")
    assert others == []


def test_no_package_holds_more_than_a_fifth_of_the_lines() -> None:
    lines: Counter[str] = Counter()
    for path in MODULES.values():
        package, *rest = path.relative_to(ROOT).parts[:-1]
        lines["/".join([package, *rest[:1]])] += len(path.read_text().splitlines())
    shares = {name: count / lines.total() for name, count in lines.items()}
    assert {name: share for name, share in shares.items() if share > LARGEST_SHARE} == {}


def test_no_module_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    long = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert {name: length for name, length in long.items() if name not in LONGER_MODULES} == {}


LAZY_CIRCLE = {
    "p/__init__.py": "",
    "p/a.py": "from p import b",
    "p/b.py": "def f():\n    from .c import D",
    "p/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a",
}


@pytest.mark.parametrize("left_out", [None, "p/a.py", "p/b.py", "p/c.py"])
def test_a_circle_of_lazy_and_type_imports_is_found(tmp_path: Path, left_out: str | None) -> None:
    (tmp_path / "p").mkdir()
    for name, source in LAZY_CIRCLE.items():
        (tmp_path / name).write_text("" if name == left_out else source)
    found = circle(import_graph(modules_of([tmp_path / "p"])))
    assert set(found) == (set() if left_out else {"p.a", "p.b", "p.c"})
