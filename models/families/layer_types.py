"""Sliding windows of a config.json that says of each layer whether it has one."""

from __future__ import annotations

from models.config import Config


def sliding_layers(config: Config, layers: int, otherwise: list[bool]) -> list[bool]:
    """Return which layers slide: as `layer_types` says, or where it is missing as the family has it.

    Raises `CheckpointError` for a list of another length, and for other kinds of layers.
    """
    kinds = config.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise config.error("layer_types", f"a list with one entry for each of {layers} layers is needed")
    for kind in kinds or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise config.error("layer_types", "supported: full_attention, sliding_attention")
    return [kind == "sliding_attention" for kind in kinds] if kinds else otherwise


def windows(config: Config, sliding: list[bool]) -> tuple[int | None, ...] | None:
    """Return `sliding_window` in the layers that slide, one entry a layer; None where none does."""
    if not any(sliding):
        return None
    window = config.integer("sliding_window")
    return tuple(window if slides else None for slides in sliding)
