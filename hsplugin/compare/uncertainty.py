"""Which differences of accuracy are noise: between test images, and between seeds.

All runs answer the same test images, and a method's runs differ by their seeds. With ``a`` and
``b`` the answers of two methods, ``(seeds, n)``, each the share in [0, 1] that was right, the
difference of their mean accuracies has the squared standard error

    var_i(mean_s a - mean_s b) / n  +  var_s(mean_i a) / S_a  +  var_s(mean_i b) / S_b.

The first term is what other test images would change; it is paired, image by image, so what is hard
for both methods cancels. The others are what other seeds would change. Noise of single answers of
single runs is in both kinds of terms, which makes the sum a little too large, never too small.
With one seed each, only the first term is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An estimate in percent, its standard error, and degrees of freedom (Welch-Satterthwaite)."""

    value: float
    error: float
    freedom: float

    def p_above(self) -> float:
        """One-sided p-value of the true difference being 0 or below."""
        from scipy import stats

        if self.error == 0:
            return 0.5 if self.value == 0 else float(self.value < 0)
        return float(stats.t.sf(self.value / self.error, self.freedom))

    def p_value(self) -> float:
        """Two-sided p-value of the true difference being 0."""
        return min(1.0, 2 * min(self.p_above(), 1 - self.p_above()))


def difference(a: Tensor, b: Tensor | None = None) -> Difference:
    """The difference of two methods' mean accuracies, or one method's mean accuracy.

    Args:
        a: Answers ``(seeds, n)`` of one method, each the share in [0, 1] that was right.
        b: Answers ``(seeds, n)`` of the other to the same images; None compares with 0.
    """
    both = [a.double()] if b is None else [a.double(), b.double()]
    by_image = both[0].mean(0) - (both[1].mean(0) if b is not None else 0)
    parts = [(float(by_image.var()) / len(by_image), len(by_image) - 1)]
    for answers in both:
        if len(answers) > 1:
            parts.append((float(answers.mean(1).var()) / len(answers), len(answers) - 1))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = variance**2 / spread if spread > 0 else float("inf")
    return Difference(100 * float(by_image.mean()), 100 * variance**0.5, freedom)


def among_the_best(answers: Sequence[Tensor]) -> list[bool]:
    """Which methods cannot be told apart from the one with the best mean accuracy.

    A method is left out where the best is better than it at the level 5 %, divided by the number
    of rivals (Bonferroni), so that the truly best method is among those marked with a probability
    of at least 95 %, however many are compared.

    Args:
        answers: Answers ``(seeds, n)`` of each method to the same test images.
    """
    best = max(answers, key=lambda one: float(one.double().mean()))
    level = LEVEL / max(1, len(answers) - 1)
    return [one is best or difference(best, one).p_above() >= level for one in answers]
