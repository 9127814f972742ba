"""The losses as modules: they normalise, gather over ranks, and name their terms."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hsplugin.checks import (
    check_features,
    check_number,
    check_pair,
    check_positive,
    check_t,
)
from hsplugin.functional import pair_distances, unit_rows
from hsplugin.potential import check_backend, is_traced, log_mean_potential
from hsplugin.potential.distributed import mean_over_ranks, world_size
from hsplugin.small_batch import align_uniform_terms

# How far from one a norm may lie before features cannot be meant as points on the sphere.
CLEARLY_UNNORMALISED = 1e-2
# No norm differs from one by this: a GPU has not come to write the difference yet.
_NOT_YET = -1.0


class _SphereLoss(nn.Module):
    """What the losses share: how features get onto the sphere, and over which ranks they reach."""

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

    def _gathers(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _check(self, z_a: Tensor, z_b: Tensor) -> None:
        # A rank that alone has no rows must take part, or the others would wait for it for ever.
        check_pair("z_a", z_a, "z_b", z_b, min_rows=0 if self._gathers() else 1)

    def _views(self, z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
        self._check(z_a, z_b)
        return self._on_sphere("z_a", z_a), self._on_sphere("z_b", z_b)

    def _on_sphere(self, name: str, z: Tensor) -> Tensor:
        if self.normalize:
            return unit_rows(z)
        if not self._norms_checked and not is_traced(z):
            self._warn_if_unnormalised(name, z.detach())
        return z

    @torch.no_grad()
    def _warn_if_unnormalised(self, name: str, z: Tensor) -> None:
        """Look at the first batch's norms; on a GPU read them when a later step finds them done."""
        if self._norm_error is None:
            error = (torch.linalg.vector_norm(z.float(), dim=1) - 1).abs().max()
            # Not an event to ask, because modules that hold one can be neither copied nor saved.
            self._norm_error = torch.full(
                (), _NOT_YET, dtype=error.dtype, device="cpu", pin_memory=z.is_cuda
            )
            self._norm_error.copy_(error, non_blocking=z.is_cuda)
        error_value = float(self._norm_error)
        if error_value == _NOT_YET:
            return
        self._norms_checked = True
        if error_value > CLEARLY_UNNORMALISED:
            warnings.warn(
                f"{type(self).__name__}(normalize=False) was given {name} whose row norms differ "
                f"from 1 by up to {error_value:.3g}. Alignment and uniformity are defined on the "
                f"unit sphere: pass normalize=True or normalise the features first.",
                stacklevel=5,
            )

    def _align(self, z_a: Tensor, z_b: Tensor, alpha: float) -> Tensor:
        distances = pair_distances(z_a, z_b, alpha)
        return mean_over_ranks(distances) if self.gather_distributed else distances.mean()

    def _uniform(self, z: Tensor, t: float, backend: str) -> Tensor:
        return log_mean_potential(z, t, gather_distributed=self.gather_distributed, backend=backend)

    def _mean_uniform(self, z_a: Tensor, z_b: Tensor, t: float, backend: str) -> Tensor:
        return (self._uniform(z_a, t, backend) + self._uniform(z_b, t, backend)) / 2


class AlignLoss(_SphereLoss):
    r"""Alignment of two views: :math:`\frac1N \sum_i \|a_i - b_i\|_2^\alpha` of unit rows.

    Args:
        alpha: The exponent, above 0.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Average over the pairs of every rank; value and, after DDP's averaging,
            gradient are those of one process with the whole batch, uneven batches included.

    Raises:
        TypeError: If alpha is no number.
        ValueError: If alpha <= 0, or gathering is asked of a torch without torch.distributed.
    """

    def __init__(
        self, alpha: float = 2.0, *, normalize: bool = True, gather_distributed: bool = False
    ) -> None:
        super().__init__(normalize, gather_distributed)
        self.alpha = check_positive("alpha", alpha)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the scalar loss of two views (N, d); see :func:`hsplugin.align_loss`."""
        return self._align(*self._views(z_a, z_b), self.alpha)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return f"alpha={self.alpha}, normalize={self.normalize}"


class UniformLoss(_SphereLoss):
    r"""Uniformity of features: :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    Given two views it is the mean of both, as in the paper's training loss.

    Args:
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Take the pairs over the batches of every rank; value and, after DDP's
            averaging, gradient are those of one process with the whole batch.
        backend: Which engine computes it: "auto", "reference", "tiled" or "triton".

    Raises:
        TypeError: If t is no number.
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
        if z_b is None:
            check_features("z_a", z_a, min_rows=0 if self._gathers() else 1)
            return self._uniform(self._on_sphere("z_a", z_a), self.t, self.backend)
        return self._mean_uniform(*self._views(z_a, z_b), self.t, self.backend)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return f"t={self.t}, normalize={self.normalize}, backend={self.backend!r}"


class AlignUniformTerms(NamedTuple):
    """The loss and the two terms it weighs, each a scalar tensor.

    Attributes:
        loss: ``align_weight * align + uniform_weight * uniform``.
        align: The alignment of the two views, before its weight.
        uniform: The mean uniformity of the two views, before its weight.
    """

    loss: Tensor
    align: Tensor
    uniform: Tensor


class AlignUniformLoss(_SphereLoss):
    r"""The paper's training loss over two views a and b, in place of any two-view criterion.

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
        gather_distributed: Let both terms reach over the batches of every rank; value and, after
            DDP's averaging, gradient are those of one process with the whole batch.
        backend: Which engine computes uniformity: "auto", "reference", "tiled" or "triton".

    Raises:
        TypeError: If a weight, alpha or t is no number.
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

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the scalar loss of two views (N, d) of the same samples, N >= 2.

        Raises:
            TypeError: If a view is no floating-point tensor or their dtypes differ.
            ValueError: If the views differ in shape or device, or have fewer than two rows.
        """
        return self.components(z_a, z_b).loss

    def components(self, z_a: Tensor, z_b: Tensor) -> AlignUniformTerms:
        """Return the loss with its two terms, differentiable as :meth:`forward` is."""
        self._check(z_a, z_b)
        if self._is_plain():
            terms = align_uniform_terms(z_a, z_b, self.align_weight, self.uniform_weight, self.t)
            if terms is not None:
                return AlignUniformTerms(*terms)
        z_a, z_b = self._on_sphere("z_a", z_a), self._on_sphere("z_b", z_b)
        align = self._align(z_a, z_b, self.alpha)
        uniform = self._uniform_term(z_a, z_b)
        return AlignUniformTerms(
            self.align_weight * align + self.uniform_weight * uniform, align, uniform
        )

    def _is_plain(self) -> bool:
        """Whether this is the paper's loss of one process in its usual form."""
        # Weights may have been made parameters that are learned.
        numbers = (self.align_weight, self.uniform_weight, self.t)
        return (
            self.normalize
            and self.alpha == 2
            and self.backend == "auto"
            and all(type(number) is float for number in numbers)
            and not self._gathers()
        )

    def _uniform_term(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The uniformity that is weighed; a subclass with a memory bank has another."""
        return self._mean_uniform(z_a, z_b, self.t, self.backend)

    def extra_repr(self) -> str:
        """Show the settings in ``print(loss)``."""
        return (
            f"align_weight={self.align_weight}, uniform_weight={self.uniform_weight}, "
            f"alpha={self.alpha}, t={self.t}, normalize={self.normalize}, "
            f"gather_distributed={self.gather_distributed}, backend={self.backend!r}"
        )
