"""Public model shapes by name, for estimates and benchmarks: an architecture without weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from models.architecture import Architecture, Rotary
from models.architectures import AnyArchitecture, decoder_of, encoder_of, without_encoder
from models.checkpoint import read_description
from models.config import Config, read_json
from models.description import Description
from models.encoder_architecture import EncoderArchitecture
from models.families.registry import family_for
from models.gguf.conversion import GgufModel
from models.gguf.header import is_gguf
from models.known_checkpoints import KNOWN, KNOWN_ENCODERS
from mpc.errors import ConfigurationError
from protocols.suite import Norm


def _gpt2(layers: int, width: int, heads: int, vocabulary: int = 50257, positions: int = 1024) -> Architecture:
    """Return GPT-2 (Radford et al. 2019) as `models.families.gpt2` reads it: a centred residual stream, so no mean in its
    norms."""
    return Architecture(
        family="gpt2",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads,
        head_channels=width // heads,
        feed_forward=4 * width,
        vocabulary=vocabulary,
        positions=positions,
        rotary=None,
        norm=Norm("rms", 1e-5),
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


def _llama2(layers: int, width: int, heads: int, kv_heads: int, feed_forward: int) -> Architecture:
    """Return LLaMA-2 (Touvron et al. 2023)."""
    return Architecture(
        family="llama",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_channels=width // heads,
        feed_forward=feed_forward,
        vocabulary=32000,
        positions=4096,
        rotary=Rotary(),
        norm=Norm("rms", 1e-5),
        activation="silu",
        gated=True,
    )


def _bert(layers: int, width: int, heads: int, labels: int = 2) -> EncoderArchitecture:
    """Return BERT (Devlin et al. 2019) with a head of so many classes, as `models.families.bert` reads it."""
    return EncoderArchitecture(
        family="bert",
        layers=layers,
        width=width,
        heads=heads,
        head_channels=width // heads,
        feed_forward=4 * width,
        vocabulary=30522,
        positions=512,
        norm=Norm("layer", 1e-12),
        activation="gelu",
        types=2,
        pooler="tanh",
        head="classes",
        labels=labels,
    )


SHAPES: dict[str, Architecture] = {
    "tiny": _gpt2(4, 32, 2, vocabulary=97, positions=64),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "llama-2-7b": _llama2(32, 4096, 32, 32, 11008),
    "llama-2-13b": _llama2(40, 5120, 40, 40, 13824),
    "llama-2-70b": _llama2(80, 8192, 64, 8, 28672),
    **{name: decoder_of(family_for(Config(options, Path(name))).architecture, name) for name, options in KNOWN.items()},
}
ENCODER_SHAPES: dict[str, EncoderArchitecture] = {
    "tiny-encoder": _bert(2, 32, 2),
    "minilm-l6": _bert(6, 384, 12),
    "bert-base": _bert(12, 768, 12),
    "bert-large": _bert(24, 1024, 16),
    **{
        name: encoder_of(family_for(Config(options, Path(name))).architecture, name)
        for name, options in KNOWN_ENCODERS.items()
    },
}
A = TypeVar("A", bound=Description)


def find_shape(name: str) -> Architecture:
    """Return the architecture of a decoder that reads its prompt itself, see `find_description`. Raises `ConfigurationError`
    for an encoder, and for a decoder behind one."""
    return without_encoder(decoder_of(find_description(name), f"shape '{name}'"), f"shape '{name}'")


def find_description(name: str) -> AnyArchitecture:
    """Return what is public about the model of a known shape's name, a checkpoint directory, a config.json or a GGUF file.

    Raises `ConfigurationError` for what is none of them, `CheckpointError` for a file whose model is not supported.

    >>> find_shape("llama-2-7b").layers, with_layers(find_shape("llama-2-7b"), 2).layers
    (32, 2)
    """
    if name in SHAPES:
        return SHAPES[name]
    if name in ENCODER_SHAPES:
        return ENCODER_SHAPES[name]
    path = Path(name)
    if path.is_dir():
        return read_description(path)
    if is_gguf(path):
        return GgufModel.open(path).architecture
    if path.is_file():
        return family_for(Config(read_json(path), path)).architecture
    raise ConfigurationError(
        f"model '{name}' is neither a file, nor a folder, nor one of the known shapes: "
        f"{', '.join([*SHAPES, *ENCODER_SHAPES])}"
    )


def tied(name: str) -> bool:
    """Return whether the head of what `find_description` finds is the token table, which a checkpoint then has once. Parties
    hold it twice: the head has the last norm's gain in it, and other ring and fraction bits.

    >>> tied("gpt2"), tied("llama-2-7b"), tied("qwen2.5-0.5b")
    (True, False, True)
    """
    if name in SHAPES and name not in KNOWN:
        return SHAPES[name].family == "gpt2"
    path = Path(name)
    if name in ENCODER_SHAPES or is_gguf(path):
        return name not in ENCODER_SHAPES and "output.weight" not in GgufModel.open(path).header.tensors
    config = path / "config.json" if path.is_dir() else path
    family = family_for(Config(KNOWN[name] if name in KNOWN else read_json(config), config))
    a = family.architecture
    if not isinstance(a, Architecture):
        return False
    return family.config.flag("tie_word_embeddings", family.tied_by_default or a.encoder is not None)


def with_layers(architecture: A, layers: int) -> A:
    """Return a shape's first `layers` layers. Raises `ConfigurationError` when it has fewer."""
    if isinstance(architecture, Architecture) and architecture.encoder is not None:
        raise ConfigurationError(
            f"layers = {layers}: '{architecture.family}' has an encoder in front of its decoder, which are measured whole; "
            "leave the number of layers out"
        )
    if not 1 <= layers <= architecture.layers:
        raise ConfigurationError(f"layers = {layers}: the shape has {architecture.layers} layers; use 1 to that many")
    return architecture.reduced(range(layers))


def with_positions(architecture: A, positions: int) -> A:
    """Return the same shape with room for at least `positions` positions: lengths beyond a model's own can be measured
    too."""
    return architecture.model_copy(update={"positions": max(architecture.positions, positions)})
