"""RoBERTa: BERT's layers, positions that begin behind the padding token's, and other heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.encoder_architecture import EncoderArchitecture
from models.families.bert import Bert
from models.families.encoder_family import HeadNames


class Roberta(Bert):
    """Reads `RobertaModel` checkpoints and those with a head, CamemBERT's and XLM-RoBERTa's too. Source: Liu et al. 2019.

    The function of the word head is gelu, whatever `hidden_act` is; a checkpoint where the two differ is refused.
    """

    prefix = "roberta."
    buffers = (
        r"lm_head\.bias",
        r"lm_head\.decoder\.(weight|bias)",
        r"pooler\.dense\.(weight|bias)",
    )
    defaults: ClassVar[Mapping[str, Any]] = {"pad_token_id": 1}

    def describe(self) -> EncoderArchitecture:
        if self.head_kind == "words":
            self.config.refuse("hidden_act", "a word head of RoBERTa has gelu; another function is not supported", "gelu")
        return super().describe().model_copy(update={"pad_counts": False})

    def _skipped(self, pad: int) -> int:
        return pad + 1

    @property
    def skipped_positions(self) -> int:  # type: ignore[override]
        return self.architecture.pad + 1

    @property
    def head_names(self) -> HeadNames:
        classes = self.architecture.head == "classes"
        return HeadNames(
            pooler="classifier.dense" if classes else "pooler.dense",
            head="classifier.out_proj" if classes else "classifier",
            dense="lm_head.dense",
            norm="lm_head.layer_norm",
            decoder="lm_head.decoder",
            bias="lm_head.bias",
        )
