"""Any method of solo-learn with alignment and uniformity added to its own loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig
from solo.methods.base import BaseMethod
from solo.methods.dino import DINO
from solo.methods.mae import MAE
from torch import Tensor, nn

from hsplugin_solo.objective import ManyCropLoss, check_objective, fill_settings
from hsplugin_solo.resume import ExactResume

SECTION = "method_kwargs.align_uniform"
DEFAULTS = {
    "weight": 1.0,
    "temperature": None,
    "align_weight": 1.0,
    "uniform_weight": 1.0,
    "alpha": 2.0,
    "t": 2.0,
}


@functools.cache
def with_align_uniform(method: type[BaseMethod], embedding: str | None = None) -> type[BaseMethod]:
    r"""Subclass a two-view method to add a weight times our loss to its own.

    .. math::
        L_\mathrm{method} + \lambda \, (w_a \, \mathrm{align}_\alpha + w_u \, \mathrm{uniform}_t)

    over the embeddings of the large crops, normalised, and over the batches of all ranks.
    Logs ``train_align_loss`` and ``train_uniform_loss`` in addition to the method's values.

    Settings in ``method_kwargs.align_uniform``:
        weight: The factor :math:`\lambda`, 0 or above; 1.
        align_weight, uniform_weight, alpha, t: As in ``align_uniform``; 1, 1, 2 and 2.
        temperature: In place of those four, as in ``align_uniform``.

    The backbone is the stock method's. ``main_linear.py`` chooses a ViT by ``pretrain_method``, so
    give it the stock name (``mocov3``).

    Args:
        method: A subclass of solo-learn's ``BaseMethod``.
        embedding: Dotted name of the submodule whose output is the embedding. The default is the
            ``"z"`` that ``forward`` returns; for DINO, whose z are prototype scores, it is their
            input, the output of ``"head.mlp"``.

    Raises:
        TypeError: If it is not such a class.
        ValueError: If the method has no pair of embeddings, like masked autoencoders.

    Example:
        >>> from solo.methods import BYOL  # doctest: +SKIP
        >>> model = with_align_uniform(BYOL)(cfg)  # doctest: +SKIP
    """
    if not (isinstance(method, type) and issubclass(method, BaseMethod)):
        raise TypeError(
            f"with_align_uniform takes a subclass of solo.methods.BaseMethod, got {method!r}"
        )
    if issubclass(method, MAE):
        raise ValueError(
            f"{method.__name__} reconstructs masked pixels of one view: there is no pair of "
            "embeddings to align, so alignment and uniformity cannot be added to its loss"
        )
    if embedding is None and issubclass(method, DINO):
        embedding = "head.mlp"
    own = {
        "__doc__": _Auxiliary.__doc__,
        "__module__": __name__,
        "_embedding": embedding,
        "_BACKBONES": {
            name: functools.partial(_build_stock_backbone, build)
            for name, build in method._BACKBONES.items()
        },
    }
    return type(f"{method.__name__}AlignUniform", (_Auxiliary, method), own)


def _build_stock_backbone(
    build: Callable[..., nn.Module], method: str, *args: Any, **kwargs: Any
) -> nn.Module:
    """Build a backbone by the stock name, by which solo-learn gives MoCo V3 its own ViT."""
    return build(method.removesuffix("_au"), *args, **kwargs)


class _Auxiliary(ExactResume):
    """A method of solo-learn with alignment and uniformity added to its own loss."""

    cfg: DictConfig
    num_large_crops: int
    _embedding: str | None = None

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        settings = dict(self.cfg.method_kwargs.align_uniform)
        name = str(self.cfg.method)
        self.align_uniform_weight = settings["weight"]
        self.align_uniform = ManyCropLoss(check_objective(settings, SECTION, name))
        # Embeddings of the current step's large crops, in order.
        self._crops: list[Tensor] = []
        if self._embedding is not None:
            self.get_submodule(self._embedding).register_forward_hook(self._keep)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fill in defaults and refuse invalid settings before anything is built."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        settings = fill_settings(cfg, SECTION, DEFAULTS, str(cfg.method))
        check_objective(settings, SECTION, str(cfg.method))
        weight = settings["weight"]
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not weight >= 0:
            raise ValueError(f"{SECTION}.weight must be a number, 0 or above, got {weight!r}")
        return cfg

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.training:
            self._crops.append(output)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keep the embedding of each large crop while the method computes its loss."""
        out: dict[str, Any] = super().forward(*args, **kwargs)
        if self.training and self._embedding is None:
            if "z" not in out:
                raise ValueError(
                    f"forward of {type(self).__mro__[2].__name__} returns no 'z' "
                    f"(only {', '.join(out)}); name the submodule that makes the embedding: "
                    "with_align_uniform(method, embedding=...)"
                )
            self._crops.append(out["z"])
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Return the method's loss plus the weighted objective."""
        self._crops = []
        loss: Tensor = super().training_step(batch, batch_idx)
        crops, self._crops = self._crops[: self.num_large_crops], []
        terms = self.align_uniform(crops, self.num_large_crops)
        self.log_dict(
            {"train_align_loss": terms.align, "train_uniform_loss": terms.uniform},
            on_epoch=True,
            sync_dist=True,
        )
        return loss + self.align_uniform_weight * terms.loss
