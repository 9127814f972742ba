"""Parts of pages that are written from what the code declares: ``{declared} methods``, for one."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from docutils import nodes
from repository_links import REPOSITORY, ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hsplugin.lab.methods import METHODS
from hsplugin.metrics import METRICS, OF_TWO_ENCODERS, GeometryMetric, functional
from hsplugin.monitor.mixin import DEFAULT_METRICS, NEED_LABELS

ROWS, DIM, CLASSES = 1000, 64, 10
INPUTS = {
    "x": "features",
    "y": "the features of a second view",
    "views": "the features of several views",
    "labels": "class labels",
}
DIRECTIONS = {True: "more", False: "less", None: "neither more nor less"}


def metric(name: str) -> str:
    """What a metric declares, as a table."""
    kind = {**METRICS, **OF_TWO_ENCODERS}[name]
    docstring = inspect.getdoc(getattr(functional, name)) or ""
    formula = _block_formula(docstring) or _inline_formula(docstring)
    source = re.search(r"^Source: (.*?)(?:\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    facts = {
        "Formula": formula,
        "Better": DIRECTIONS[kind.higher_is_better],
        "Range": _range(kind),
        "Takes": _takes(kind),
        "Monitor": _monitor(name, kind),
        "Source": _first_sentence(source[1]) if source else "",
        "Reference": f":class:`hsplugin.metrics.{kind.__name__}`, "
        f":func:`hsplugin.metrics.functional.{name}`",
    }
    rows = [
        f"* - {key}\n  - {textwrap.indent(text, '    ').strip()}" for key, text in facts.items()
    ]
    table = ".. list-table::\n   :width: 100%\n   :stub-columns: 1\n   :widths: 15 85\n\n"
    return table + textwrap.indent("\n".join(rows), "   ")


def _first_sentence(text: str) -> str:
    return re.split(r"\.\s+(?=[A-Z])", " ".join(text.split()))[0].rstrip(".") + "."


def _block_formula(docstring: str) -> str:
    found = re.search(r"^\.\. math::\n((?: {4}.*\n|\n)+)", docstring, re.MULTILINE)
    return f".. math::\n\n{found[1].rstrip()}" if found else ""


def _inline_formula(docstring: str) -> str:
    found = re.search(r":math:`([^`]*)`", docstring)
    return f".. math::\n\n    {found[1]}" if found else ""


def _range(kind: type[GeometryMetric]) -> str:
    least, most = kind.build(num_classes=CLASSES).bounds(ROWS, DIM)
    unknown = ", or NaN where there is nothing to measure" if kind.may_be_nan else ""
    return f"{_number(least)} to {_number(most)}, of {ROWS} rows of {DIM} dimensions{unknown}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ("-" if value < 0 else "") + "infinity"


def _takes(kind: type[GeometryMetric]) -> str:
    if kind.name in OF_TWO_ENCODERS:
        return "the features of two encoders"
    optional = [f"{INPUTS[name]} if there are any" for name in kind.optional]
    return " and ".join([*(INPUTS[name] for name in kind.takes), *optional])


def _monitor(name: str, kind: type[GeometryMetric]) -> str:
    if name in OF_TWO_ENCODERS:
        return "no"
    if kind.required:
        example = f"{kind.__name__}({', '.join(f'{one}=10' for one in kind.required)})"
        return f'with ``metrics={{"{name}": {example}}}``'
    if name not in DEFAULT_METRICS:
        return f'with ``metrics=["{name}"]``'
    how = ", where batches have labels" if name in NEED_LABELS else ""
    return "unless told otherwise" + how + (", and of single batches" if kind.each_step else "")


def methods() -> str:
    """The methods that can be trained, as a table."""
    table = ".. list-table::\n   :width: 100%\n   :header-rows: 1\n   :widths: 30 30 40\n\n"
    rows = [_row("method", "own options and defaults", "also tried by ``--tune``")]
    for name, method in METHODS.items():
        rows.append(
            _row(
                f"**{name}**: {method.about}",
                _options(method.defaults),
                "; ".join(map(_options, method.candidates)),
            )
        )
    return table + textwrap.indent("\n".join(rows), "   ")


def recipes() -> str:
    """The scripts in examples/, as a table."""
    rows = [_row("script", "what it does")]
    for path in sorted((ROOT / "examples").glob("*.py")):
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        rows.append(_row(f"`{path.name} <{REPOSITORY}/blob/main/examples/{path.name}>`_", about))
    table = ".. list-table::\n   :width: 100%\n   :header-rows: 1\n   :widths: 30 70\n\n"
    return table + textwrap.indent("\n".join(rows), "   ")


def _row(*cells: str) -> str:
    return "\n".join(f"{'* - ' if not place else '  - '}{cell}" for place, cell in enumerate(cells))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"``{name}={value}``" for name, value in options.items())


PARTS: dict[str, Callable[..., str]] = {"metric": metric, "methods": methods, "recipes": recipes}


class Declared(SphinxDirective):
    """Inserts one of :data:`PARTS`, which is reStructuredText as docstrings are."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the part where the directive stands."""
        part, *arguments = self.arguments
        text = PARTS[part](*arguments)
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text}\n```")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("declared", Declared)
    return {"parallel_read_safe": True}
