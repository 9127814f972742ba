"""The align/uniform objective in the conventions of Lightly's two-view criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hsplugin import losses
from hsplugin.potential import log_mean_potential
from hsplugin.potential.distributed import gather_rows
from hsplugin.sphere import PAIR
from hsplugin.views import mean_alignment

try:
    from lightly.models.modules.memory_bank import MemoryBankModule
except ImportError as error:
    raise ImportError("hsplugin_lightly needs Lightly: pip install 'hsplugin[lightly]'") from error


class AlignUniformLoss(losses.AlignUniformLoss):
    r"""A replacement for any two-view Lightly criterion; features are normalised inside.

    Without a memory bank it is :class:`hsplugin.AlignUniformLoss`. With one it is the MoCo form:
    z_a are queries, z_b keys, and uniformity is that of the queries against each other and the
    bank of earlier keys,

    .. math::
        \log \mathrm{mean}\left(\{e^{-t\|a_i - m_k\|^2}\}_{i,k}
        \cup \{e^{-t\|a_i - a_j\|^2}\}_{i<j}\right).

    After each training step the keys join the bank, as in ``lightly.loss.NTXentLoss``.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

    Args:
        align_weight: Weight of alignment.
        uniform_weight: Weight of uniformity.
        alpha: Exponent of alignment, above 0.
        t: Inverse width of the Gaussian in uniformity, above 0.
        normalize: Whether to scale features to unit length first.
        gather_distributed: Compute both terms over the batches of every rank, and gather keys
            before they join the memory bank.
        backend: Which engine computes uniformity: "auto", "reference", "tiled" or "triton".
        memory_bank_size: Size of the bank, preferably as (number, dimension); 0 for none.
        intra_batch: Whether pairs within the batch count beside the memory bank.

    Raises:
        TypeError: If a weight, alpha or t is not a number.
        ValueError: If alpha or t is not above 0, a weight is not finite or below 0, the backend is
            unknown, the bank's size is negative, or torch.distributed is missing.

    Examples:
        >>> import torch
        >>> criterion = AlignUniformLoss()  # was: NTXentLoss()
        >>> z0, z1 = torch.eye(4), torch.eye(4)
        >>> round(criterion(z0, z1).item(), 4)
        -4.0
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
        memory_bank_size: int | Sequence[int] = 0,
        intra_batch: bool = True,
    ) -> None:
        super().__init__(
            align_weight,
            uniform_weight,
            alpha,
            t,
            normalize=normalize,
            gather_distributed=gather_distributed,
            backend=backend,
        )
        self.memory_bank = MemoryBankModule(size=memory_bank_size, feature_dim_first=False)
        self.intra_batch = intra_batch

    def _has_bank(self) -> bool:
        return self.memory_bank.bank.numel() > 0

    def of_views(
        self,
        views: Mapping[str, Tensor],
        pairs: Sequence[tuple[int, int]] | None = None,
        labels: Tensor | None = None,
    ) -> losses.AlignUniformTerms:
        """Return the loss with its two terms; in training, keys then join the memory bank.

        Raises:
            TypeError: As :meth:`hsplugin.AlignUniformLoss.of_views`.
            ValueError: Likewise, or if there is a memory bank, and not just queries and keys.
        """
        if not self._has_bank():
            return super().of_views(views, pairs, labels)
        if len(views) != 2 or labels is not None or pairs is not None:
            raise ValueError(
                f"with a memory bank the loss takes queries and keys, two views, no labels and no "
                f"pairs, got {len(views)} view(s); set memory_bank_size=0 for other forms"
            )
        given_queries, _ = views.values()
        on_sphere = self._on_sphere(self._stack(views))
        gather = self.gather_distributed
        align = mean_alignment(on_sphere, PAIR, self.alpha, gather_distributed=gather)
        queries, keys = on_sphere.unbind()
        keys, training = keys.detach(), given_queries.requires_grad and torch.is_grad_enabled()
        if training and gather:
            # Lightly's own gathering assumes that all ranks have the same number of keys.
            keys, _ = gather_rows(keys)
        _, bank = self.memory_bank(keys, update=training)
        uniform = log_mean_potential(
            queries,
            self.t,
            queue=bank.to(queries),
            intra_batch=self.intra_batch,
            gather_distributed=gather,
            backend=self.backend,
        )
        loss = self.align_weight * align + self.uniform_weight * uniform
        return losses.AlignUniformTerms(loss, align, uniform)
