"""Reports as one HTML file: tables that sort on a click and plotly's figures, nothing fetched.

The file holds plotly's script, and a content security policy forbids it to load anything else.
All text is escaped: names of files and labels come from others.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

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
STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: #1b1f24;
  background: #fff; font: 16px/1.5 FONT; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e3e6ea; text-align: right;
  vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #9aa3ad; font-weight: 600; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
td small { display: block; color: #59626d; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #3366aa; outline-offset: 2px; }
th button::after { content: " \\2195"; color: #aab2bb; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #1b1f24; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #1b1f24; }
.figure { width: 100%; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; }
.figures > div, .figure { min-width: 0; }
pre { background: #f5f6f8; padding: .75rem 1rem; overflow-x: auto; font-size: .82rem; }
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


class Page:
    """A page that is filled from top to bottom.

    Args:
        title: Its heading.

    Example:
        >>> page = Page("Two runs")
        >>> page.table(["run", "accuracy"], [["a <b>", 0.5], ["c", (0.75, "[0.7, 0.8]")]])
        >>> "a &lt;b&gt;" in page.html()
        True
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        self._has_figures = False

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add preformatted text, such as a command."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table whose rows sort by a column on a click on its heading.

        Args:
            columns: The headings.
            rows: Cells: text; numbers, shown with four decimals if they are no integers; None where
                there is nothing; or a number and small text below it, such as an interval.
        """
        texts = [any(isinstance(row[place], str) for row in rows) for place in range(len(columns))]
        head = "".join(
            f'<th scope="col"{" class=text" if text else ""}>'
            f'<button type="button">{html.escape(name)}</button></th>'
            for name, text in zip(columns, texts, strict=True)
        )
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figures(self, *figures: Any, height: int = 380) -> None:
        """Add plotly figures, side by side where the window is wide enough.

        Args:
            figures: Of :class:`plotly.graph_objects.Figure`.
            height: Height of each in pixels.
        """
        from plotly.io import to_html

        self._has_figures = True
        made = [
            to_html(
                figure,
                full_html=False,
                include_plotlyjs=False,
                default_height=f"{height}px",
                config=CONFIG,
            )
            for figure in figures
        ]
        kind = "figures" if len(made) > 1 else "figure"
        self._parts.append(f'<div class="{kind}">{"".join(made)}</div>')

    def html(self) -> str:
        """The whole page."""
        script = ""
        if self._has_figures:
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
<script>{SORTING}</script>
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


def _cell(value: Any) -> str:
    small = ""
    if isinstance(value, tuple):
        value, below = value
        small = f"<small>{html.escape(below)}</small>" if below else ""
    if isinstance(value, str):
        return (
            f'<td class="text" data-value="{html.escape(value)}">{html.escape(value)}{small}</td>'
        )
    if value is None or not math.isfinite(value):
        return f'<td data-value="">{"&ndash;" if value is None else value}{small}</td>'
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    return f'<td data-value="{value!r}">{text}{small}</td>'
