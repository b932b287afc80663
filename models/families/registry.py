"""The model families by the name that config.json gives: one file a family, one line each in `FAMILIES`."""

from __future__ import annotations

from models.config import Config
from models.families.bert import Bert
from models.families.distilbert import DistilBert
from models.families.encoder_family import EncoderFamily
from models.families.falcon import Falcon
from models.families.family import Family
from models.families.gemma import Gemma
from models.families.gemma2 import Gemma2
from models.families.gemma3 import Gemma3
from models.families.gpt2 import Gpt2
from models.families.gpt_neox import GptNeoX
from models.families.gptj import GptJ
from models.families.granite import Granite
from models.families.llama import Llama
from models.families.mistral import Mistral
from models.families.mixtral import Mixtral
from models.families.olmo2 import Olmo2
from models.families.opt import Opt
from models.families.phi3 import Phi3
from models.families.qwen2 import Qwen2
from models.families.qwen3 import Qwen3
from models.families.qwen3_moe import Qwen3Moe
from models.families.roberta import Roberta
from models.families.smollm3 import SmolLm3
from models.families.stablelm import StableLm
from models.families.starcoder2 import StarCoder2
from models.families.t5 import MT5, T5

FAMILIES: dict[str, type[Family]] = {
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Mistral,
    "mixtral": Mixtral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "phi3": Phi3,
    "opt": Opt,
    "gpt_neox": GptNeoX,
    "gptj": GptJ,
    "falcon": Falcon,
    "stablelm": StableLm,
    "starcoder2": StarCoder2,
    "olmo2": Olmo2,
    "smollm3": SmolLm3,
    "granite": Granite,
    "t5": T5,
    "mt5": MT5,
}
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
