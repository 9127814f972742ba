"""What the numbers of a sweep mean and how they came about, in words for every form of report."""

from __future__ import annotations

from collections.abc import Sequence

from hsplugin.sweep.encoders import Row

BEST = "best on validation (linear)"
LOST = "points lost by choosing by"
# In Markdown.
EXPLANATION = """\
Metrics are of two views of each validation image (t = 2): of normalised projections and, marked
*backbone*, of the backbone's normalised features. Accuracy is of the frozen backbone after the last
epoch, in percent. Intervals: 95 %, bootstrap over encoders.
*Expected sign*: the sign that a useful metric would have. *Lower left wins*: among the pairs in
which one encoder is both better aligned and more uniform, how often it is also more accurate (0.5
is chance). *Points lost*: test accuracy of the encoder with the best accuracy on validation minus
that of the one that the metric ranks first. Only tolerance and the rank in classes use labels."""


def title(rows: Sequence[Row], missing: int) -> str:
    """The question, and of how many encoders it is asked."""
    count = f"{len(rows)} encoders" + (f" ({missing} more failed)" if missing else "")
    return f"Which metric predicts accuracy: {count} on {rows[0]['data']}"


def budget(rows: Sequence[Row]) -> str:
    """What every encoder was given."""
    size = rows[0]["train_size"] or "all"
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    return f"""\
backbone {rows[0]["backbone"]}, {size} training images,
  seed {rows[0]["seed"]}; training took {minutes:.0f} minutes in all (measuring not counted)."""
