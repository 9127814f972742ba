"""Lists and sliders that change a figure of a page, with a pointer or the keyboard.

They are elements of HTML, because plotly's own obey no keyboard.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCRIPT = """
document.querySelectorAll('.controls').forEach(group => {
  const figure = document.getElementById(group.dataset.figure);
  const {data, controls} = JSON.parse(group.querySelector('script').textContent);
  const found = value =>
    typeof value === 'string' && Object.hasOwn(data, value) ? data[value] : value;
  group.querySelectorAll('label').forEach((label, place) => {
    const input = label.querySelector('input, select');
    const [output, play] = [label.querySelector('output'), label.nextElementSibling];
    const show = () => {
      const step = controls[place].steps[input.value], update = {};
      const traces = Object.keys(step.traces).map(Number);
      traces.forEach((trace, number) => {
        for (const [name, value] of Object.entries(step.traces[trace]))
          (update[name] ??= Array(traces.length))[number] = found(value);
      });
      if (output) {
        output.textContent = step.label;
        input.setAttribute('aria-valuetext', step.label);
      }
      Plotly.update(figure, update, {...step.layout}, traces);
    };
    input.addEventListener(output ? 'input' : 'change', show);
    if (!output) return;
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
    input.addEventListener('input', stop);
    play.addEventListener('click', () => {
      if (timer) return stop();
      play.textContent = 'Pause';
      if (input.value === input.max) { input.value = 0; show(); }
      timer = setInterval(() => {
        input.stepUp();
        show();
        if (input.value === input.max) stop();
      }, 600);
    });
  });
});
"""


@dataclass(frozen=True)
class Step:
    """What one position of a control changes in its figure.

    Attributes:
        label: What the position is called.
        traces: Number of a trace -> its attributes as in ``Plotly.restyle``. A value that is a
            name in the data of the figure stands for the data.
        layout: Attributes of the layout as in ``Plotly.relayout``.
    """

    label: str
    traces: Mapping[int, Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """A list to choose from, or a slider that also plays; both obey the keyboard.

    Attributes:
        label: What is chosen.
        steps: Its positions.
        chosen: The position that the figure is drawn at.
        slider: Whether the positions have an order in time.
    """

    label: str
    steps: Sequence[Step]
    chosen: int = 0
    slider: bool = False

    def html(self) -> str:
        """The control as the page shows it."""
        label = html.escape(self.label)
        if not self.slider:
            options = "".join(
                f'<option value="{place}"{" selected" if place == self.chosen else ""}>'
                f"{html.escape(step.label)}</option>"
                for place, step in enumerate(self.steps)
            )
            return f"<label>{label} <select>{options}</select></label>"
        now = html.escape(self.steps[self.chosen].label)
        return (
            f'<label>{label} <input type="range" min="0" max="{len(self.steps) - 1}" '
            f'value="{self.chosen}" aria-valuetext="{now}"> <output>{now}</output></label>'
            '<button type="button">Play</button>'
        )


def controls_html(
    figure: str, controls: Sequence[Control], data: Mapping[str, Sequence[Any]]
) -> str:
    """The controls of the figure with this id, and what they need to change it."""
    from plotly.io.json import to_json_plotly

    # Plotly's own encoder writes NaN as null, and no character that ends a script.
    content = to_json_plotly({"data": data, "controls": [asdict(one) for one in controls]})
    return (
        f'<div class="controls" data-figure="{figure}">'
        f"{''.join(control.html() for control in controls)}"
        f'<script type="application/json">{content}</script></div>'
    )
