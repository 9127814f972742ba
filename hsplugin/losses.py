"""The losses as modules: they normalise, gather over ranks, and name their terms.

Views are checked and stacked once to (v, n, d), normalised once, and take one path through
alignment and the potential.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hsplugin.checks import check_number, check_positive, check_t
from hsplugin.functional import unit_rows
from hsplugin.potential import check_backend, is_traced
from hsplugin.views import Terms, align_uniform, mean_alignment, stack_views

# Features whose norms differ from one by more than this are not meant to lie on the sphere.
CLEARLY_UNNORMALISED = 1e-2
# Its name before it moved.
normalize = unit_rows
# The indices of two views.
PAIR = ((0, 1),)
# What from_temperature sets, so that nothing else may.
BY_TEMPERATURE = ("align_weight", "uniform_weight", "alpha", "t")
# Sentinel: the asynchronous copy of the norms' error from a GPU has not finished.
_PENDING = -1.0

_Loss = TypeVar("_Loss", bound="AlignUniformLoss")


class _SphereLoss(nn.Module):
    """Shared by the losses: how views get onto the sphere, and whether ranks are gathered."""

    def __init__(self, normalize: bool, gather_distributed: bool) -> None:
        super().__init__()
        if gather_distributed and not dist.is_available():
            raise ValueError(
                "gather_distributed=True needs torch.distributed, which this torch was built "
                "without; set gather_distributed=False"
            )
        self.normalize = normalize
        self.gather_distributed = gather_distributed
        self._norm_error: Tensor | None = None
        self._norms_checked = normalize

    def _stack(self, views: Mapping[str, Tensor], min_rows: int = 2) -> Tensor:
        """The views, checked, as one tensor (v, n, d)."""
        z = stack_views(views, min_rows=min_rows, gather_distributed=self.gather_distributed)
        if not self._norms_checked and not is_traced(z):
            self._warn_if_unnormalised(z.detach())
        return z

    def _on_sphere(self, views: Tensor) -> Tensor:
        return unit_rows(views) if self.normalize else views

    @torch.no_grad()
    def _warn_if_unnormalised(self, z: Tensor) -> None:
        """Check the norms of the first batch; on a GPU, read them once a later step has them."""
        if self._norm_error is None:
            if z.numel() == 0:
                return
            error = (torch.linalg.vector_norm(z.float(), dim=-1) - 1).abs().max()
            # Not a CUDA event: modules that hold one can be neither copied nor saved.
            self._norm_error = torch.full(
                (), _PENDING, dtype=error.dtype, device="cpu", pin_memory=z.is_cuda
            )
            self._norm_error.copy_(error, non_blocking=z.is_cuda)
        error_value = float(self._norm_error)
        if error_value == _PENDING:
            return
        self._norms_checked = True
        if error_value > CLEARLY_UNNORMALISED:
            warnings.warn(
                f"{type(self).__name__}(normalize=False) was given features whose row norms differ "
                f"from 1 by up to {error_value:.3g}. Alignment and uniformity are defined on the "
                f"unit sphere: pass normalize=True or normalise the features first.",
                stacklevel=5,
            )


class AlignLoss(_SphereLoss):
    r"""Alignment of two views: :math:`\frac1N \sum_i \|a_i - b_i\|_2^\alpha` of unit rows.

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

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the scalar loss of two views (N, d); see :func:`hsplugin.align_loss`."""
        views = self._on_sphere(self._stack({"z_a": z_a, "z_b": z_b}, min_rows=1))
        return mean_alignment(views, PAIR, self.alpha, gather_distributed=self.gather_distributed)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return f"alpha={self.alpha}, normalize={self.normalize}"


class UniformLoss(_SphereLoss):
    r"""Uniformity of features: :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    For two views it is the mean of both, as in the paper's training loss.

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

    def forward(self, z_a: Tensor, z_b: Tensor | None = None) -> Tensor:
        """Return the scalar loss of one or two views (N, d); see :func:`hsplugin.uniform_loss`."""
        views = self._stack({"z_a": z_a} if z_b is None else {"z_a": z_a, "z_b": z_b})
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
        align: The alignment of the two views, before its weight.
        uniform: The mean uniformity of the two views, before its weight.
    """

    loss: Tensor
    align: Tensor
    uniform: Tensor


class AlignUniformLoss(_SphereLoss):
    r"""The paper's training loss over two views a and b, a replacement for any two-view criterion.

    .. math::
        w_a \frac1N \sum_i \|a_i - b_i\|_2^\alpha + w_u \frac{U(a) + U(b)}{2}, \qquad
        U(x) = \log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}

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
          anchors of the relative potential, and it pushes rows of dense regions apart harder.
          The larger the temperature, the smaller the difference.
        - In a finite batch the positive's own term in InfoNCE's denominator, and the bias of the
          logarithm of a mean of few, make a difference of order 1 / M, which grows as the
          temperature falls. The gradients differ by order :math:`M^{-1/2}`.
        - NT-Xent draws negatives from both views, this loss from each by itself: the same in the
          limit, as both views have one distribution.
        - With a queue (MoCo), only queries have a gradient in both. InfoNCE sees the queue alone,
          as ``hsplugin_lightly.AlignUniformLoss`` does with ``intra_batch=False``.

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
        for name in BY_TEMPERATURE:
            if name in settings:
                raise ValueError(
                    f"from_temperature determines {name}, got {name}={settings[name]!r} too; leave "
                    f"it out, or pass all settings to {cls.__name__}(...) and no temperature"
                )
        t = 1 / (2 * check_positive("temperature", temperature))
        return cls(t, 1.0, 2.0, t, **settings)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the scalar loss of two views (N, d) of the same samples, N >= 2.

        Raises:
            TypeError: If a view is not a floating-point tensor, or dtypes differ.
            ValueError: If the views differ in shape or device, or have fewer than two rows.
        """
        return self.components(z_a, z_b).loss

    def components(self, z_a: Tensor, z_b: Tensor) -> AlignUniformTerms:
        """Return the loss with its two terms, each differentiable once."""
        return self.of_views({"z_a": z_a, "z_b": z_b}, PAIR)

    def of_views(
        self, views: Mapping[str, Tensor], pairs: Sequence[tuple[int, int]]
    ) -> AlignUniformTerms:
        """Return the loss and its terms for any number of views (N, d) of the same samples.

        Args:
            views: Features by the name that messages call them.
            pairs: Indices of the two views of each pair that alignment averages over; uniformity
                averages over the views.

        Raises:
            TypeError: As :meth:`forward`.
            ValueError: As :meth:`forward`, or if a pair names no two views.
        """
        pairs = tuple(pairs)
        for pair in pairs:
            if not 0 <= min(pair) <= max(pair) < len(views):
                raise ValueError(f"pairs must hold indices of the {len(views)} views, got {pair}")
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
        return AlignUniformTerms(*align_uniform(self._stack(views), terms))

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return (
            f"align_weight={self.align_weight}, uniform_weight={self.uniform_weight}, "
            f"alpha={self.alpha}, t={self.t}, normalize={self.normalize}, "
            f"gather_distributed={self.gather_distributed}, backend={self.backend!r}"
        )
