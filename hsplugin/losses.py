"""The losses as modules: they normalise, gather over ranks, and name their terms.

Views are checked and stacked once to (v, n, d), normalised once, and take one path through
alignment and the potential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from hsplugin.checks import check_number, check_positive, check_t
from hsplugin.potential import check_backend, mean_potential
from hsplugin.sphere import SphereLoss, every_pair, named_views, zero
from hsplugin.views import Pairs, Terms, align_uniform

_Loss = TypeVar("_Loss", bound="AlignUniformLoss")


class AlignLoss(SphereLoss):
    r"""Alignment of views: :math:`\frac1N \sum_i \|a_i - b_i\|_2^\alpha` of unit rows.

    More than two views, and positives by label, are as in :class:`AlignUniformLoss`.

    Args:
        alpha: The exponent, above 0.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Average over the pairs of every rank; value and, after DDP's averaging,
            gradient are those of one process with the whole batch, uneven batches included.

    Raises:
        TypeError: If alpha is not a number.
        ValueError: If alpha <= 0, or torch.distributed is missing.
    """

    def __init__(
        self, alpha: float = 2.0, *, normalize: bool = True, gather_distributed: bool = False
    ) -> None:
        super().__init__(normalize, gather_distributed)
        self.alpha = check_positive("alpha", alpha)

    def forward(
        self, z_a: Tensor, z_b: Tensor | None = None, *others: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Return the scalar loss; arguments and errors are those of :class:`AlignUniformLoss`."""
        views = named_views(z_a, z_b, others)
        pairs = every_pair(views) if labels is None else ()
        return self._alignment(self._on_sphere(self._stack(views)), pairs, self.alpha, labels)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return f"alpha={self.alpha}, normalize={self.normalize}"


class UniformLoss(SphereLoss):
    r"""Uniformity of features: :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    For several views it is their mean, as in the paper's training loss. A batch of one row gives 0,
    with the gradient 0, and warns once.

    Args:
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Take the pairs over the batches of every rank; value and, after DDP's
            averaging, gradient are those of one process with the whole batch.
        backend: Which engine computes it: "auto", "reference", "tiled" or "triton".

    Raises:
        TypeError: If t is not a number.
        ValueError: If t is out of range, the backend is unknown, or torch.distributed is missing.
    """

    def __init__(
        self,
        t: float = 2.0,
        *,
        normalize: bool = True,
        gather_distributed: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(normalize, gather_distributed)
        self.t = check_t(t)
        self.backend = check_backend(backend)

    def forward(self, z_a: Tensor, z_b: Tensor | None = None, *others: Tensor) -> Tensor:
        """Return the scalar loss of views (N, d), or of one tensor (N, V, d) of them."""
        views = self._stack(named_views(z_a, z_b, others))
        if views.size(1) == 1 and self._lacks_pairs(views):
            return zero(self._on_sphere(views))
        terms = Terms(
            pairs=(),
            t=self.t,
            normalize=self.normalize,
            gather_distributed=self.gather_distributed,
            backend=self.backend,
        )
        return align_uniform(views, terms)[2]

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return f"t={self.t}, normalize={self.normalize}, backend={self.backend!r}"


class AlignUniformTerms(NamedTuple):
    """The loss and its two terms, each a scalar tensor.

    Attributes:
        loss: ``align_weight * align + uniform_weight * uniform``.
        align: The alignment of the views, before its weight.
        uniform: The mean uniformity of the views, before its weight.
    """

    loss: Tensor
    align: Tensor
    uniform: Tensor


class AlignUniformLoss(SphereLoss):
    r"""The paper's training loss over two views a and b, a replacement for any two-view criterion.

    .. math::
        w_a \frac1N \sum_i \|a_i - b_i\|_2^\alpha + w_u \frac{U(a) + U(b)}{2}, \qquad
        U(x) = \log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}

    The features may come as

    ==============================  ===========================================================
    ``loss(z_a, z_b)``              two views (N, d) of N samples
    ``loss(z_1, z_2, z_3, ...)``    V views: alignment averages over the V (V - 1) / 2 pairs of
                                    views, uniformity over the views
    ``loss(features)``              the same views in one tensor (N, V, d), as SupCon has them
    ``loss(..., labels=labels)``    positives are rows of one class (SupCon): N integers for
                                    views (N, d) or (N, V, d), or for one set of rows (N, d)
    ==============================  ===========================================================

    With labels alignment is the mean over rows, those of every view, of the mean of
    :math:`\|x_i - x_p\|^\alpha` over the other rows of their class. Rows alone in their class do
    not count; without any positive it is 0. Each row weighs the same, in whatever class: positive
    pairs keep the distribution of the data, as the paper assumes, and :meth:`from_temperature`
    stands for SupCon's loss. Crops of uneven number are one set of rows (N, d) with the index of
    each one's sample as its label; uniformity is then over all pairs of rows.

    A batch of one row has no pairs: its uniformity counts as 0, without a gradient, and warns once,
    so that the last batch of a data loader ends no training. 0 is the mean over all ordered pairs,
    self-pairs included, of one row; NaN would spoil the means that are logged. A row shorter than
    1e-6 has no direction and is not scaled, so that its gradient is bounded: a batch of such rows
    has a loss near 0, as after collapse, and no warning, as no step reads values.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

    Args:
        align_weight: Weight w_a of alignment.
        uniform_weight: Weight w_u of uniformity.
        alpha: Exponent of alignment, above 0.
        t: Inverse width of the Gaussian in uniformity, above 0 and at most 1e37.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Compute both terms over the batches of every rank; value and, after
            DDP's averaging, gradient are those of one process with the whole batch.
        backend: Which engine computes uniformity: "auto", "reference", "tiled" or "triton".

    Raises:
        TypeError: If a weight, alpha or t is not a number.
        ValueError: If alpha or t is not above 0, a weight is not finite or below 0, the backend is
            unknown, or torch.distributed is missing.

    Example:
        >>> import torch
        >>> loss = AlignUniformLoss(t=2.0)
        >>> z = torch.eye(4)
        >>> round(loss(z, z).item(), 4)
        -4.0
        >>> loss.components(z, z).align
        tensor(0.)
    """

    def __init__(
        self,
        align_weight: float = 1.0,
        uniform_weight: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        *,
        normalize: bool = True,
        gather_distributed: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(normalize, gather_distributed)
        self.align_weight = check_number("align_weight", align_weight)
        self.uniform_weight = check_number("uniform_weight", uniform_weight)
        for name in ("align_weight", "uniform_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")
        self.alpha = check_positive("alpha", alpha)
        self.t = check_t(t)
        self.backend = check_backend(backend)

    @classmethod
    def from_temperature(cls: type[_Loss], temperature: float, **settings: Any) -> _Loss:
        r"""The loss in place of InfoNCE or NT-Xent of a temperature, with nothing to tune again.

        It has :math:`t = 1 / (2 \tau)`, ``align_weight`` t, ``uniform_weight`` 1 and ``alpha`` 2.
        For unit rows :math:`-a^\top b / \tau = t \|a - b\|^2 - 1 / \tau`, so that InfoNCE with the
        M rows :math:`n_j` in its denominator is

        .. math::
            t \, \mathrm{mean}_i \|a_i - b_i\|^2
            + \mathrm{mean}_i \log \mathrm{mean}_j\, e^{-t \|a_i - n_j\|^2} + \log M.

        By the law of large numbers the inner mean tends to its expectation as M grows (theorem 1
        of the paper, which proves the rate :math:`M^{-1/2}`), and the first two terms to ``align``
        times t plus ``uniform``, in value and gradient. How far the equality goes:

        - InfoNCE takes a logarithm for each anchor, uniformity one for all pairs. They agree where
          every anchor has the same mean potential, as on features uniform on the sphere. Elsewhere
          this loss is above InfoNCE's limit (Jensen), to second order by half the variance over
          anchors of the relative potential, and pushes rows of dense regions apart harder; less so
          the larger the temperature.
        - In a finite batch the positive's own term in the denominator, and the bias of the log of
          a mean of few, are of order 1 / M and grow as the temperature falls. The gradients differ
          by order :math:`M^{-1/2}`.
        - NT-Xent draws negatives from both views, this loss from each by itself: the same in the
          limit, as both have one distribution.
        - InfoNCE with a queue sees no pairs within the batch, as with ``intra_batch=False`` in
          ``hsplugin_lightly.AlignUniformLoss``.

        Args:
            temperature: The temperature :math:`\tau` of the loss replaced, above 0.
            settings: All other arguments of the class.

        Raises:
            TypeError: If the temperature is not a number, or a setting is unknown.
            ValueError: If the temperature is not above 0, or a setting is one that it determines.

        Example:
            >>> loss = AlignUniformLoss.from_temperature(0.25)  # was: NTXentLoss(temperature=0.25)
            >>> loss.align_weight, loss.uniform_weight, loss.t
            (2.0, 1.0, 2.0)
        """
        for name in settings.keys() & {"align_weight", "uniform_weight", "alpha", "t"}:
            raise ValueError(
                f"from_temperature determines {name}, got {name}={settings[name]!r} too; leave it "
                f"out, or pass all settings to {cls.__name__}(...) and no temperature"
            )
        t = 1 / (2 * check_positive("temperature", temperature))
        return cls(t, 1.0, 2.0, t, **settings)

    def forward(
        self, z_a: Tensor, z_b: Tensor | None = None, *others: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Return the scalar loss of views of the same N samples.

        Args:
            z_a: Features (N, d) of one view, or (N, V, d) of V views if alone.
            z_b: Features (N, d) of another view.
            others: Features of further views.
            labels: Integers (N,) by which rows are positives of each other.

        Raises:
            TypeError: If a view is not a floating-point tensor, dtypes differ, or labels are no
                integers.
            ValueError: If the views differ in shape or device or are empty, or there is one view
                and no labels, or labels have another number or device.
        """
        return self.of_views(named_views(z_a, z_b, others), None, labels).loss

    def components(
        self, z_a: Tensor, z_b: Tensor | None = None, *others: Tensor, labels: Tensor | None = None
    ) -> AlignUniformTerms:
        """Return the loss with its two terms; arguments and errors as :meth:`forward`.

        Example:
            >>> import torch
            >>> crops = torch.eye(5)  # three of the first sample and two of the second
            >>> loss = AlignUniformLoss()
            >>> loss.components(crops, labels=torch.tensor([0, 0, 0, 1, 1])).align
            tensor(2.)
        """
        return self.of_views(named_views(z_a, z_b, others), None, labels)

    def of_views(
        self,
        views: Mapping[str, Tensor],
        pairs: Sequence[tuple[int, int]] | None = None,
        labels: Tensor | None = None,
    ) -> AlignUniformTerms:
        """Return the loss and its terms for any number of views (N, d) of the same samples.

        Args:
            views: Features by the name that messages call them.
            pairs: Indices of the two views of each pair that alignment averages over, every pair by
                default; uniformity averages over the views.
            labels: As in :meth:`forward`, in place of pairs.

        Raises:
            TypeError: As :meth:`forward`.
            ValueError: As :meth:`forward`, or if a pair names no two views, or there are both pairs
                and labels.
        """
        if labels is not None and pairs is not None:
            raise ValueError("pass pairs of views or labels, not both")
        if pairs is None:
            pairs = every_pair(views) if labels is None else ()
        else:
            pairs = tuple(pairs)
            for pair in pairs:
                if not 0 <= min(pair) <= max(pair) < len(views):
                    raise ValueError(
                        f"pairs must hold indices of the {len(views)} views, got {pair}"
                    )
        z = self._stack(views)
        single = z.size(1) == 1 and self._lacks_pairs(z)
        if single or labels is not None:
            return self._in_plain_operations(z, pairs, labels, single)
        terms = Terms(
            pairs,
            self.align_weight,
            self.uniform_weight,
            self.alpha,
            self.t,
            self.normalize,
            self.gather_distributed,
            self.backend,
        )
        return AlignUniformTerms(*align_uniform(z, terms))

    def _in_plain_operations(
        self, views: Tensor, pairs: Pairs, labels: Tensor | None, single: bool
    ) -> AlignUniformTerms:
        """The terms by labels, or of single rows, without the fast path of small batches."""
        x = self._on_sphere(views)
        if single:
            uniform = zero(x)
        else:
            uniform = mean_potential(
                x, None, check_t(self.t), True, False, self.gather_distributed, self.backend
            )
        align = self._alignment(x, pairs, self.alpha, labels)
        loss = self.align_weight * align + self.uniform_weight * uniform
        return AlignUniformTerms(loss, align, uniform)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return (
            f"align_weight={self.align_weight}, uniform_weight={self.uniform_weight}, "
            f"alpha={self.alpha}, t={self.t}, normalize={self.normalize}, "
            f"gather_distributed={self.gather_distributed}, backend={self.backend!r}"
        )
