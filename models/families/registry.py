"""The model families by the name that config.json gives: one file a family, one line each in `FAMILIES`."""

from __future__ import annotations

from models.config import Config
from models.families.bert import Bert
from models.families.distilbert import DistilBert
from models.families.encoder_family import EncoderFamily
from models.families.family import Family
from models.families.gpt2 import Gpt2
from models.families.llama import Llama
from models.families.mistral import Mistral
from models.families.qwen2 import Qwen2
from models.families.roberta import Roberta

FAMILIES: dict[str, type[Family]] = {"gpt2": Gpt2, "llama": Llama, "mistral": Mistral, "qwen2": Qwen2}
"""model_type of config.json -> family of decoders."""

ENCODERS: dict[str, type[EncoderFamily]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
    "camembert": Roberta,
    "distilbert": DistilBert,
}
"""model_type of config.json -> family of encoders."""


def family_for(config: Config) -> Family | EncoderFamily:
    """Return the family of a checkpoint. Raises `CheckpointError` for an unknown model_type."""
    kind = config.values.get("model_type")
    known: dict[str, type[Family] | type[EncoderFamily]] = {**FAMILIES, **ENCODERS}
    if not isinstance(kind, str) or kind not in known:
        raise config.error("model_type", f"this architecture is not supported; supported: {', '.join(known)}")
    return known[kind](config)


def decoder_family(config: Config) -> Family:
    """Return the family of a decoder's checkpoint. Raises `CheckpointError` for another model_type."""
    found = family_for(config)
    if isinstance(found, EncoderFamily):
        raise config.error("model_type", f"a decoder is needed; known: {', '.join(FAMILIES)}")
    return found
