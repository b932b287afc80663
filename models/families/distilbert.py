"""DistilBERT: BERT's layers under other names, without token types and with a ReLU in front of its classes."""

from __future__ import annotations

from models.encoder_architecture import EncoderArchitecture
from models.families.encoder_family import EncoderFamily, HeadNames, LayerNames, encoder_norm

EPSILON = 1e-12  # of all its norms; config.json has none


class DistilBert(EncoderFamily):
    """Reads `DistilBertModel` checkpoints and those with a head. Source: Sanh et al. 2019."""

    prefix = "distilbert."
    buffers = (r"vocab_projector\.weight",)
    layer_names = LayerNames(
        query="transformer.layer.{}.attention.q_lin",
        key="transformer.layer.{}.attention.k_lin",
        value="transformer.layer.{}.attention.v_lin",
        out="transformer.layer.{}.attention.out_lin",
        attention_norm="transformer.layer.{}.sa_layer_norm",
        up="transformer.layer.{}.ffn.lin1",
        down="transformer.layer.{}.ffn.lin2",
        output_norm="transformer.layer.{}.output_layer_norm",
    )

    def describe(self) -> EncoderArchitecture:
        c = self.config
        width = c.integer("dim")
        heads = self.heads_of("n_heads", width)
        common = self.common()
        return EncoderArchitecture(
            family="distilbert",
            layers=c.integer("n_layers"),
            width=width,
            heads=heads,
            head_channels=width // heads,
            feed_forward=c.integer("hidden_dim"),
            positions=c.integer("max_position_embeddings"),
            norm=encoder_norm(EPSILON),
            activation=c.activation("activation", "gelu"),
            pooler="relu" if common["head"] == "classes" else None,
            **common,
        )

    @property
    def type_rows(self) -> int:
        return 0

    @property
    def head_names(self) -> HeadNames:
        return HeadNames(
            pooler="pre_classifier",
            head="classifier",
            dense="vocab_transform",
            norm="vocab_layer_norm",
            decoder="vocab_projector",
            bias="vocab_projector.bias",
        )
