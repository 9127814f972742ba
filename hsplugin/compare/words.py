"""What a comparison's numbers mean and how they came about, in words for every form of report."""

from __future__ import annotations

from collections.abc import Sequence

from hsplugin.compare.groups import MARK, Group, Row, options_in_words
from hsplugin.lab.methods import METHODS, UNTRAINED


def _trained(groups: Sequence[Group]) -> Row:
    """A run that tells the budget: the untrained encoder has none."""
    rows = [group.rows[0] for group in groups]
    return next((row for row in rows if row["method"] != UNTRAINED), rows[0])


def explanation(groups: Sequence[Group]) -> list[str]:
    """How to read the columns of the summary, its errors and marks, in Markdown."""
    per_class = _trained(groups)["labels_per_class"]
    labels = f"{per_class} labels per class (mean of fixed draws)" if per_class else "all labels"
    columns = f"""\
Mean ± standard deviation over seeds. Alignment and uniformity (t = 2) of normalised projections of
two views of each validation image; *optimum* is the uniformity of perfectly uniform features in
that dimension; *images/s* while training, of one run. Accuracy of the frozen backbone on the
test split with {labels} of the training split, after the last
epoch and after the epoch with the best kNN accuracy on the validation split; no choice looks at
the test split."""
    if not all(group.answers for group in groups):
        return [columns]
    images = groups[0].answers["knn"].shape[1]
    if all(len(group.rows) > 1 for group in groups):
        scope = "other test images and other seeds"
        sure = "with 95 % confidence the truly best is among them"
    else:
        scope = "other test images, but not other seeds, of which a method here has only one"
        sure = "other seeds may change more than the marks tell"
    errors = f"""\
In brackets the standard error of the mean, from {scope}
({images} test images). {MARK} marks the best of a column and what cannot be told apart from it:
{sure}.
The squared standard error of a difference is the variance over images of the difference of mean
answers / n, plus each method's variance over seeds / seeds: paired by image, thus smaller than the
brackets suggest. *differences.csv* has every pair of rows."""
    return [columns, errors]


def methods_in_words(groups: Sequence[Group]) -> dict[str, str]:
    """What each method is, and the defaults that it was trained with."""
    words = {}
    for group in groups:
        row = group.rows[0]
        if row["method"] in METHODS:
            about, defaults = METHODS[row["method"]].about, options_in_words(row["defaults"])
            words[row["method"]] = f"{about} ({defaults})." if defaults else f"{about}."
    return words


def budget(groups: Sequence[Group]) -> str:
    """What every run was given."""
    row = _trained(groups)
    return f"""\
{row["epochs"]} epochs, batch {row["batch_size"]}, {row["train_size"] or "all"} training images,
  backbone {row["backbone"]} ({row["parameters"] / 1e6:.2f} M parameters),
  precision {row["precision"]}{", compiled" if row.get("compile") else ""}."""
