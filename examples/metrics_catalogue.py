"""What each metric says of made representations whose geometry is known, as a table.

python examples/metrics_catalogue.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hsplugin.lab.files import markdown_table
from hsplugin.metrics import METRICS
from hsplugin.metrics.inputs import select_inputs

ROWS, DIM, CLASSES = 1000, 64, 10
LABELS = torch.arange(ROWS) % CLASSES
Views = tuple[Tensor, Tensor]


def noise(generator: torch.Generator, size: float) -> Tensor:
    """Rows in random directions, of about this length."""
    return size / DIM**0.5 * torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)


def around(generator: torch.Generator, centres: Tensor, spread: float) -> Views:
    """Two views that both are this far from their centres."""
    return centres + noise(generator, spread), centres + noise(generator, spread)


def uniform(generator: torch.Generator) -> Views:
    """Rows spread over the whole sphere, views close to each other; classes play no part."""
    return around(generator, normalize(noise(generator, 1.0)), 0.2)


def point(generator: torch.Generator) -> Views:
    """All rows in one direction, up to noise of a hundredth of their length."""
    return around(generator, torch.eye(DIM, dtype=torch.float64)[:1].expand(ROWS, -1), 0.01)


def few_dimensions(generator: torch.Generator) -> Views:
    """Rows spread over the sphere of 16 of the 64 dimensions, and a little noise in all of them."""
    x = noise(generator, 1.0)
    x[:, 16:] = 0
    return around(generator, normalize(x), 0.02)


def clusters(generator: torch.Generator) -> Views:
    """Each class around a random direction of its own."""
    return around(generator, normalize(noise(generator, 1.0))[LABELS], 0.5)


def simplex(generator: torch.Generator) -> Views:
    """Each class at one vertex of a regular simplex: neural collapse."""
    vertices = torch.eye(CLASSES, DIM, dtype=torch.float64)
    x = normalize(vertices - vertices.mean(dim=0))[LABELS]
    return x, x.clone()


def power_law(generator: torch.Generator) -> Views:
    """Gaussian rows with eigenvalues 1, 1/2, 1/3, ... of their covariance."""
    scale = torch.arange(1, DIM + 1, dtype=torch.float64) ** -0.5
    return around(generator, noise(generator, DIM**0.5) * scale, 0.2)


def outlier(generator: torch.Generator) -> Views:
    """As uniform, but one row, in both views, is 1000 times as long."""
    x, y = uniform(generator)
    x[0], y[0] = 1000 * x[0], 1000 * y[0]
    return x, y


CASES: dict[str, Callable[[torch.Generator], Views]] = {
    case.__name__.replace("_", " "): case
    for case in (uniform, point, few_dimensions, clusters, simplex, power_law, outlier)
}


def value(name: str, x: Tensor, y: Tensor) -> float:
    """A metric with its defaults."""
    metric = METRICS[name].build(num_classes=CLASSES)
    return float(metric.of(*select_inputs(metric.takes, metric.optional, x, y, LABELS)))


def rounded(number: float) -> str:
    """Three digits, and at most three after the point."""
    digits = next((n for n, least in enumerate((100, 10, 1)) if abs(number) >= least), 3)
    return f"{round(number, digits) + 0.0:.{digits}f}"  # no -0.000


def table() -> str:
    """The values in Markdown: a row a metric, a column a case."""
    views = {name: make(torch.Generator().manual_seed(0)) for name, make in CASES.items()}
    lines = [["metric", *CASES]]
    for name in METRICS:
        lines.append([name, *(rounded(value(name, x, y)) for x, y in views.values())])
    return markdown_table(lines)


if __name__ == "__main__":
    print(table())
