"""The align/uniform objective in the conventions of sentence-transformers' losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import hsplugin
from hsplugin import AlignLoss, UniformLoss


class AlignUniformLoss(nn.Module):
    r"""A replacement for ``MultipleNegativesRankingLoss``; embeddings are normalised inside.

    For anchors a, positives p and, if there are any, hard negatives n it is

    .. math::
        w_a \frac1N \sum_i \|a_i - p_i\|_2^\alpha + w_u \frac{U(a) + U(p \cup n)}{2}, \qquad
        U(x) = \log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}

    so that a negative is pushed away from every document, its anchor's positive included.

    Equal texts in one batch are pushed apart in vain: train with ``BatchSamplers.NO_DUPLICATES``.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

    Args:
        model: The ``SentenceTransformer`` that is trained.
        align_weight: Weight w_a of alignment.
        uniform_weight: Weight w_u of uniformity.
        alpha: Exponent of alignment, above 0.
        t: Inverse width of the Gaussian in uniformity, above 0.
        gather_across_devices: Compute both terms over the batches of all devices.
        log_terms: Return both weighted terms by name, which the trainer adds up and logs. Without
            it the loss returns their sum, as ``MatryoshkaLoss`` needs.

    Raises:
        TypeError: If a weight, alpha or t is not a number.
        ValueError: If alpha or t is not above 0, a weight is not finite or below 0, or
            torch.distributed is missing.

    Example::

        loss = AlignUniformLoss(model)  # was: MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss)
    """

    def __init__(
        self,
        model: nn.Module,
        align_weight: float = 1.0,
        uniform_weight: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        *,
        gather_across_devices: bool = False,
        log_terms: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        checked = hsplugin.AlignUniformLoss(align_weight, uniform_weight, alpha, t)
        self.align_weight, self.uniform_weight = checked.align_weight, checked.uniform_weight
        self.align = AlignLoss(alpha, gather_distributed=gather_across_devices)
        self.uniform = UniformLoss(t, gather_distributed=gather_across_devices)
        self.log_terms = log_terms

    @classmethod
    def from_temperature(
        cls, model: nn.Module, temperature: float, **settings: Any
    ) -> AlignUniformLoss:
        """The loss in place of ``MultipleNegativesRankingLoss(model, scale=1 / temperature)``.

        They agree in the limit of many pairs, less the logarithm of the number of documents; see
        :meth:`hsplugin.AlignUniformLoss.from_temperature` for the derivation and its limits.

        Args:
            model: The ``SentenceTransformer`` that is trained.
            temperature: 1 over the ``scale`` of the loss replaced, above 0.
            settings: ``gather_across_devices`` and ``log_terms``.

        Raises:
            TypeError: If the temperature is no number, or a setting is unknown or determined by it.
            ValueError: If the temperature is not above 0.

        Example::

            loss = AlignUniformLoss.from_temperature(model, 0.05)  # scale=20, the default there
        """
        like = hsplugin.AlignUniformLoss.from_temperature(temperature)
        return cls(model, like.align_weight, like.uniform_weight, like.alpha, like.t, **settings)

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor] | Tensor:
        """Return the weighted terms, or their sum, of columns (anchor, positive, negative, ...).

        Raises:
            ValueError: If there are labels or fewer than two columns, or as
                :class:`hsplugin.AlignLoss` and :class:`hsplugin.UniformLoss`.
        """
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> dict[str, Tensor] | Tensor:
        """Return what :meth:`forward` does, of the columns' embeddings (N, d).

        Raises:
            ValueError: As :meth:`forward`.
        """
        if labels is not None:
            raise ValueError(
                "AlignUniformLoss takes every (anchor, positive) as a pair of one meaning and has "
                "no use for labels; keep such pairs only and remove the column of labels or scores"
            )
        if len(embeddings) < 2:
            raise ValueError(
                f"AlignUniformLoss needs the columns (anchor, positive), got {len(embeddings)} "
                "column(s); for SimCSE, use each text as its own positive"
            )
        anchors, positives, *negatives = embeddings
        documents = torch.cat([positives, *negatives])
        align = self.align_weight * self.align(anchors, positives)
        uniform = self.uniform_weight * (self.uniform(anchors) + self.uniform(documents)) / 2
        return {"align": align, "uniform": uniform} if self.log_terms else align + uniform

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for the model card."""
        return {
            "align_weight": self.align_weight,
            "uniform_weight": self.uniform_weight,
            "alpha": self.align.alpha,
            "t": self.uniform.t,
            "gather_across_devices": self.align.gather_distributed,
        }

    @property
    def citation(self) -> str:
        """The paper, for the model card."""
        return """
@inproceedings{wang2020hypersphere, author={Tongzhou Wang and Phillip Isola}, year={2020},
    title={Understanding Contrastive Representation Learning through
           Alignment and Uniformity on the Hypersphere},
    booktitle={International Conference on Machine Learning}, url={https://arxiv.org/abs/2005.10242}}
"""
