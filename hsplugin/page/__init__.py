"""Reports as one HTML file: tables that sort, plotly's figures and their controls, nothing fetched.

The file holds plotly's script, and a content security policy forbids it to load anything else.
All text is escaped: names of files and labels come from others.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsplugin.page.controls import SCRIPT, Control, controls_html

CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
# The other buttons of plotly are many, and one sends the data to its makers.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "resetViews"]],
    "plotlyServerURL": "",
}
COLOURS = ("#3366aa", "#dd7733", "#449955", "#bb4455", "#8866bb", "#886655", "#cc77aa", "#667788",
           "#aaaa33", "#33aabb")  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
# Characters of a table's cell.
MOST_ON_A_LINE = 18
STYLE = """
:root { color-scheme: light; }
html { scrollbar-gutter: stable; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: #1b1f24;
  background: #fff; font: 16px/1.5 FONT; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.across { overflow-x: auto; }
.scroll { overflow: auto; max-height: 34rem; margin: 1rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e3e6ea; text-align: right;
  vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #9aa3ad; vertical-align: bottom; white-space: normal; min-width: 4rem;
  position: sticky; top: 0; background: #fff; z-index: 1; }
th:first-child { left: 0; z-index: 2; }
td:first-child { position: sticky; left: 0; background: #fff; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; }
td small { display: block; color: #59626d; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1rem;
  font-size: .9rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #3366aa; outline-offset: 2px; }
th button::after { content: " \\2195"; color: #aab2bb; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #1b1f24; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #1b1f24; }
.figure { width: 100%; }
/* A figure is drawn before its neighbours are there: the columns must not depend on these. */
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, max(20rem, (100% - (var(--count) - 1) * 1rem) / var(--count))), 1fr)); }
.figures > div, .figure { min-width: 0; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1.25rem;
  margin: .75rem 0 .25rem; font-size: .9rem; }
.controls label { display: flex; align-items: center; gap: .5rem; max-width: 100%; }
.controls input { width: min(18rem, 45vw); }
.controls select { font: inherit; max-width: 12rem; }
.controls button { font: inherit; min-width: 4.5rem; }
.controls output { min-width: 4.5rem; font-variant-numeric: tabular-nums; }
""".replace("FONT", FONT)
SORTING = """
document.querySelectorAll('table').forEach(table => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.firstChild.addEventListener('click', () => {
    const order = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', order === 1 ? 'ascending' : 'descending');
    const key = row => row.cells[place].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      return order * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    [...table.tBodies[0].rows].sort(compare).forEach(row => table.tBodies[0].append(row));
  }));
});
"""


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        value: The number, by which the table sorts; None where there is none.
        small: Text below it, such as an interval.
        digits: Decimals that are shown.
    """

    value: float | None
    small: str = ""
    digits: int = 4


class Page:
    """A page that is filled from top to bottom.

    Args:
        title: Its heading.

    Example:
        >>> page = Page("Two runs")
        >>> page.table(["run", "accuracy"], [["a <b>", 0.5], ["c", Cell(0.75, "± 0.02")]])
        >>> "a &lt;b&gt;" in page.html()
        True
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        self._figures = 0

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Add names, each with what it stands for."""
        items = (
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts
        )
        self._parts.append(f"<dl>{''.join(items)}</dl>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table whose rows sort by a column on a click on its heading.

        Args:
            columns: The headings.
            rows: Cells: text; numbers, shown with four decimals if they are no integers; None where
                there is nothing; or a `Cell`.
        """
        head = ""
        for place, name in enumerate(columns):
            texts = [row[place] for row in rows if isinstance(row[place], str)]
            # Short texts stay on one line, long ones keep to some width.
            width = min(MOST_ON_A_LINE, max(map(len, texts), default=0))
            kind = f' class="text" style="min-width: {width}ch"' if texts else ""
            head += f'<th scope="col"{kind}><button type="button">{html.escape(name)}</button></th>'
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figures(self, *figures: Any, height: int = 380) -> None:
        """Add plotly figures, side by side where the window is wide enough.

        Args:
            figures: Of :class:`plotly.graph_objects.Figure`.
            height: Height of each in pixels.
        """
        made = "".join(self._drawn(figure, height) for figure in figures)
        self._parts.append(f'<div class="figures" style="--count: {len(figures)}">{made}</div>')

    def controlled(
        self,
        figure: Any,
        *controls: Control,
        data: Mapping[str, Sequence[Any]] | None = None,
        height: int = 380,
        least_width: int = 0,
    ) -> None:
        """Add a plotly figure below controls that change it.

        Args:
            figure: Of :class:`plotly.graph_objects.Figure`, drawn at the chosen positions.
            controls: Shown in this order.
            data: Values that the steps of the controls name.
            height: Height in pixels.
            least_width: Width in pixels below which the figure scrolls.
        """
        drawn = self._drawn(figure, height)
        # One position is no choice.
        choices = [control for control in controls if len(control.steps) > 1]
        if choices:
            self._parts.append(controls_html(f"figure{self._figures}", choices, data or {}))
        self._parts.append(
            f'<div class="across"><div class="figure" style="min-width: {least_width}px">{drawn}'
            "</div></div>"
        )

    def _drawn(self, figure: Any, height: int) -> str:
        from plotly.io import to_html

        self._figures += 1
        return str(
            to_html(
                figure,
                full_html=False,
                include_plotlyjs=False,
                default_height=f"{height}px",
                config=CONFIG,
                div_id=f"figure{self._figures}",
            )
        )

    def html(self) -> str:
        """The whole page."""
        script = ""
        if self._figures:
            from plotly.offline import get_plotlyjs

            script = f"<script>{get_plotlyjs()}</script>"
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
<link rel="icon" href="data:,">
<title>{html.escape(self.title)}</title>
<style>{STYLE}</style>
{script}
</head>
<body>
{"".join(self._parts)}
<script>{SORTING}{SCRIPT}</script>
</body>
</html>
"""


def figure(**layout: Any) -> Any:
    """An empty plotly figure in the style of the page.

    Args:
        layout: What else the layout holds, such as ``xaxis_title``.

    Raises:
        ImportError: If plotly is missing.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError(
            "pages need plotly; install it with: pip install 'hsplugin[measure]'"
        ) from error
    style = {
        "template": "plotly_white",
        "colorway": COLOURS,
        "font": {"family": FONT, "size": 13, "color": "#1b1f24"},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "title_font_size": 15,
        "legend": {"orientation": "h", "y": -0.25},
    }
    return go.Figure(layout={**style, **layout})


def shown(text: str, longest: int = 60) -> str:
    """Text of others for plotly, which takes some tags in it for its own."""
    short = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return html.escape(short, quote=False)


def _cell(value: str | float | Cell | None) -> str:
    if isinstance(value, str):
        return f'<td class="text" data-value="{html.escape(value)}">{html.escape(value)}</td>'
    cell = value if isinstance(value, Cell) else Cell(value)
    small = f"<small>{html.escape(cell.small)}</small>" if cell.small else ""
    if cell.value is None or not math.isfinite(cell.value):
        text = "&ndash;" if cell.value is None else cell.value
        return f'<td data-value="">{text}{small}</td>'
    text = str(cell.value) if isinstance(cell.value, int) else f"{cell.value:.{cell.digits}f}"
    return f'<td data-value="{cell.value!r}">{text}{small}</td>'
