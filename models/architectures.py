"""Any model's public description, whatever it is a model of, from its canonical JSON."""

from __future__ import annotations

import json

from models.architecture import Architecture
from models.encoder_architecture import EncoderArchitecture
from mpc.errors import ConfigurationError

AnyArchitecture = Architecture | EncoderArchitecture


def parse_description(text: str | bytes) -> AnyArchitecture:
    """Return the description that `Description.to_json` made this text of. Raises `ConfigurationError`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigurationError("architecture: is not valid JSON") from None
    if isinstance(values, dict) and values.get("model") == "encoder":
        return EncoderArchitecture.from_json(text)
    return Architecture.from_json(text)


def decoder_of(architecture: AnyArchitecture, whose: str) -> Architecture:
    """Return the description of a decoder. whose: it is, in words. Raises `ConfigurationError` for an encoder."""
    if not isinstance(architecture, Architecture):
        raise ConfigurationError(
            f"{whose}: '{architecture.family}' is an encoder, which writes no text and has no cache; use `mpcache classify` "
            "or `mpcache embed` (`PrivateModel.classify`, `.embed`), or a decoder"
        )
    return architecture


def without_encoder(architecture: Architecture, whose: str) -> Architecture:
    """Return the description of a decoder that reads its prompt itself. whose: it is, in words. Raises `ConfigurationError`
    for one with an encoder in front."""
    if architecture.encoder is not None:
        raise ConfigurationError(
            f"{whose}: '{architecture.family}' reads its prompt with an encoder, of whose rows nothing is evicted, "
            "selected or measured by itself; use policy full with `mpcache generate`, `serve`, `estimate`, `check` or "
            "`calibrate`, or a decoder without an encoder"
        )
    return architecture


def encoder_of(architecture: AnyArchitecture, whose: str) -> EncoderArchitecture:
    """Return the description of an encoder. whose: it is, in words. Raises `ConfigurationError` for a decoder."""
    if not isinstance(architecture, EncoderArchitecture):
        kind = "is a decoder" if architecture.encoder is None else "writes text behind its encoder"
        raise ConfigurationError(
            f"{whose}: '{architecture.family}' {kind}, which has neither classes nor embeddings; use "
            "`mpcache generate` (`PrivateModel.generate`), or an encoder"
        )
    return architecture
