"""Tables, pictures and the page of finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hsplugin.compare import page, pictures, tuning
from hsplugin.compare.groups import SUMMARY, Group, Row, difference_rows, grouped, summary
from hsplugin.compare.words import budget, explanation, methods_in_words
from hsplugin.lab.files import markdown_table, write_atomically, write_csv, write_text
from hsplugin.lab.methods import METHODS, UNTRAINED
from hsplugin.lab.run import Run
from hsplugin.lab.runs import collect
from hsplugin.provenance import describe

Pairs = Mapping[str, tuple[Tensor, Tensor]]


def write(out: Path, command: Sequence[str]) -> str:
    """Write all tables and pictures of a comparison from its finished runs.

    Args:
        out: The comparison's folder.
        command: The command line, for the record.

    Returns:
        The summary's table in Markdown; empty, and nothing written, if no run is finished.
    """
    results, history = collect(out)
    results.sort(key=_order)
    place = {row["run"]: number for number, row in enumerate(results)}
    history.sort(key=lambda row: (place[row["run"]], row["epoch"]))
    if not results:
        return ""
    # All is read before anything is written.
    groups = grouped(out, results)
    pairs = {g.label: Run.of_name(g.rows[0]["run"], out).read_pairs()[:2] for g in groups}
    candidates = tuning.rows_of(out)
    write_csv(out / "results.csv", [_flat(row) for row in results])
    write_csv(out / "history.csv", history)
    differences = difference_rows(groups)
    if differences:
        write_csv(out / "differences.csv", differences)
    table = summary_table(groups)
    text = _document(groups, table, command, tuning.table(candidates))
    write_text(out / "summary.md", text)
    _pictures(out, groups, pairs)
    missing = [run.name for run in Run.all_in(out) if not run.finished]
    made = page.page(groups, history, pairs, differences, candidates, missing, command)
    write_text(out / "report.html", made)
    return table


def _order(row: Row) -> tuple[int, str, str, int]:
    names = [UNTRAINED, *METHODS]
    position = names.index(row["method"]) if row["method"] in names else len(names)
    return position, row["method"], json.dumps(row["options"], sort_keys=True), row["seed"]


def _flat(row: Row) -> Row:
    nested = ("options", "defaults", "provenance")
    return {**row, **{name: json.dumps(row[name], sort_keys=True) for name in nested}}


def summary_table(groups: Sequence[Group]) -> str:
    """Markdown table with a line for each group: mean, spread over seeds, error, and a mark."""
    lines = [["method", "seeds", *SUMMARY.values()]]
    for group, means in zip(groups, summary(groups), strict=True):
        lines.append([group.label, str(len(group.rows)), *map(str, means.values())])
    return markdown_table(lines)


def _document(groups: Sequence[Group], table: str, command: Sequence[str], tuned: str) -> str:
    first = groups[0].rows[0]
    methods = "\n".join(f"- {name}: {words}" for name, words in methods_in_words(groups).items())
    blocks = [f"# Comparison on {first['data']}", table, *explanation(groups), methods, tuned]
    blocks.append(f"- Budget: {budget(groups)}\n{describe(first['provenance'], command)}")
    blocks += ["![alignment-uniformity plane](plane.png)", "![distances of pairs](histograms.png)"]
    blocks.append("The same with hover, epochs and tables that sort: [report.html](report.html)")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _pictures(out: Path, groups: Sequence[Group], pairs: Pairs) -> None:
    plane = pictures.plane([{**row, "method": g.label} for g in groups for row in g.rows])
    for suffix in ("png", "svg"):
        write_atomically(out / f"plane.{suffix}", plane.savefig)
    write_atomically(out / "histograms.png", pictures.pair_histograms(pairs).savefig)
