"""The model families by the name that config.json gives: one file a family, one line each in `FAMILIES`."""

from __future__ import annotations

from models.config import Config
from models.families.family import Family
from models.families.gpt2 import Gpt2
from models.families.llama import Llama
from models.families.mistral import Mistral
from models.families.mixtral import Mixtral
from models.families.qwen2 import Qwen2

FAMILIES: dict[str, type[Family]] = {"gpt2": Gpt2, "llama": Llama, "mistral": Mistral, "mixtral": Mixtral, "qwen2": Qwen2}
"""model_type of config.json -> family."""


def family_for(config: Config) -> Family:
    """Return the family of a checkpoint. Raises `CheckpointError` for an unknown model_type."""
    kind = config.values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise config.error("model_type", f"this architecture is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind](config)
