"""BERT, and what has its layout (MiniLM): learned positions, two token types, an exact GELU, a tanh pooler."""

from __future__ import annotations

from typing import ClassVar

from models.encoder_architecture import EncoderArchitecture
from models.families.encoder_family import EncoderFamily, HeadNames, LayerNames, encoder_norm


class Bert(EncoderFamily):
    """Reads `BertModel` checkpoints and those with a head. Source: Devlin et al. 2019."""

    prefix = "bert."
    buffers: ClassVar[tuple[str, ...]] = (
        r"cls\.predictions\.bias",
        r"cls\.predictions\.decoder\.(weight|bias)",  # of a tied head, which is the embedding
        r"cls\.seq_relationship\.(weight|bias)",
        r"pooler\.dense\.(weight|bias)",  # beside a head that does not read it
    )
    layer_names = LayerNames(
        query="encoder.layer.{}.attention.self.query",
        key="encoder.layer.{}.attention.self.key",
        value="encoder.layer.{}.attention.self.value",
        out="encoder.layer.{}.attention.output.dense",
        attention_norm="encoder.layer.{}.attention.output.LayerNorm",
        up="encoder.layer.{}.intermediate.dense",
        down="encoder.layer.{}.output.dense",
        output_norm="encoder.layer.{}.output.LayerNorm",
    )

    def describe(self) -> EncoderArchitecture:
        c = self.config
        c.refuse("position_embedding_type", "relative positions are not supported", "absolute")
        c.refuse("embedding_size", "an embedding of another width is not supported", c.values.get("hidden_size"))
        width = c.integer("hidden_size")
        heads = self.heads_of("num_attention_heads", width)
        common = self.common()
        return EncoderArchitecture(
            family=str(c.values["model_type"]),
            layers=c.integer("num_hidden_layers"),
            width=width,
            heads=heads,
            head_channels=width // heads,
            feed_forward=c.integer("intermediate_size"),
            positions=c.integer("max_position_embeddings") - self._skipped(common["pad"]),
            norm=encoder_norm(c.number("layer_norm_eps", 1e-12)),
            activation=c.activation("hidden_act", "gelu"),
            types=c.integer("type_vocab_size", 2),
            pooler="tanh" if common["head"] in ("none", "classes") else None,
            **common,
        )

    def _skipped(self, pad: int) -> int:
        """Return the rows of the position table that no token has."""
        return 0

    @property
    def head_names(self) -> HeadNames:
        at = "cls.predictions"
        return HeadNames(
            pooler="pooler.dense",
            head="classifier",
            dense=f"{at}.transform.dense",
            norm=f"{at}.transform.LayerNorm",
            decoder=f"{at}.decoder",
            bias=f"{at}.bias",
        )
