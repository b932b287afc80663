"""The pages of docs/families, from the registry of model families. `make families`:

    python -m tests.tools.family_pages [--check]

One page a family, encoders' too, by reading a well-known checkpoint's options and noting what is asked for; an index with
what a layer costs beside GPT-2's (a minute). --check: print what differs, figures aside, and exit with 1; write nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any, ClassVar

import torch

from models.architecture import Architecture
from models.architectures import decoder_of, encoder_of
from models.config import UNSUPPORTED, Config
from models.costs.estimation import estimate
from models.costs.tracing import Setting, trace_step
from models.families.encoder_family import HEADS, EncoderFamily
from models.families.family import CheckpointFamily
from models.families.registry import ENCODERS, FAMILIES
from models.families.standard import Standard
from models.families.t5 import T5
from models.known_checkpoints import KNOWN, KNOWN_ENCODERS
from models.outputs import OUTPUTS
from models.shapes import find_description, with_layers
from protocols.ranges import MARGIN, least_bound
from tests.tools.family_sweep import Cell, kind_of, recorded

RECORD = Path(__file__).with_name("family_sweep.jsonl")
FOLDER = Path(__file__).parents[2] / "docs" / "families"
CACHED = 256
TEXT = 128
BESIDE = (
    "Layers whose attention and feed-forward read the same rows (GPT-NeoX, GPT-J, Falcon, StableLM where it says so) take "
    "two thirds of the rounds of the same layers in sequence, or less: 10 of 16 or 17, Falcon's 11 of 18 (10 of 16 with "
    "`prefer=rounds`), 15 of 23 among three parties. `crypten`, which runs its operations one after the other, shares only "
    "the norm: 162 of 190."
)
GPT2 = {"model_type": "gpt2", "vocab_size": 50257}
MEASURED = {
    "gpt2": "Measured on the shipped recall model: what is chosen is in `models/recall/gpt2/mpcache.json`.",
    "llama": "Measured on SmolLM2-135M-Instruct: residual stream 27 347, queries 2.5, keys 20.9, values 11.9, gate 52, up "
    "78, logits 41.7 ([ranges.md](../ranges.md)).",
    "bert": "Measured on all-MiniLM-L6-v2, padding included: residual stream 221, spread of scores 194 in layer 0 and at "
    "most 43 in the others, values 2.8, activations 24.4 (`mpcache calibrate`).",
    "qwen2": "Measured on Qwen2.5-Coder-0.5B-Instruct: residual stream 1 422, keys 217 (27 once balanced), values 13.6, "
    "spread of scores 106, logits 24.8 ([ranges.md](../ranges.md)).",
}
CITED = json.loads((Path(__file__).parent / "cited_streams.json").read_text(encoding="utf-8"))
"""Largest entries of residual streams that others have measured, by family."""
CALIBRATED = "`mpcache calibrate` measures a checkpoint's own before it is shared."
FIELDS = ("norms", "query_key_norm", "parallel", "score_cap", "logit_cap", "activation", "gated", "qkv_bias", "mlp_bias")


class Watched(Config):
    """A config.json that notes what is asked of it: options that are read, and options that are refused, with the reason."""

    def __init__(self, values: Any, path: Path) -> None:
        super().__init__(_Noted(values), path)

    def refuse(self, key: str, why: str, *allowed: Any) -> None:
        _Noted.refused[key] = why
        if key in dict(self.values):
            super().refuse(key, why, *allowed)


class _Noted(dict[str, Any]):
    read: ClassVar[dict[str, None]] = {}
    refused: ClassVar[dict[str, str]] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.read[key] = None
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read[key] = None
        return super().__getitem__(key)


def examples() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return of each family the name and the options of a well-known checkpoint."""
    found = {"gpt2": ("gpt2", GPT2)}
    for name, options in KNOWN.items():
        found.setdefault(options["model_type"], (name, options))
    return {kind: found[kind] for kind in FAMILIES}


def encoder_examples() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the same of each family of encoders."""
    return {options["model_type"]: (name, options) for name, options in KNOWN_ENCODERS.items()}


def page(kind: str) -> str:
    """Return a family's page."""
    family, (name, options) = FAMILIES[kind], examples()[kind]
    _Noted.read.clear()
    _Noted.refused.clear()
    read = family(Watched(options, Path("config.json")))
    _ = read.tensors(), read.tied
    if isinstance(read, Standard):
        _ = read.score_scale(), read.factors()
    if isinstance(read, T5):
        _ = read.scaled
    lines = [*_options(kind, family, name), *_computed(read.architecture, family)]
    return "\n".join([*lines, "", *_bounds(kind), "## On shares", "", *_on_shares(kind), ""])


def encoder_page(kind: str) -> str:
    """Return the page of a family of encoders; options are those of all its heads."""
    family, (name, options) = ENCODERS[kind], encoder_examples()[kind]
    _Noted.read.clear()
    _Noted.refused.clear()
    for end in HEADS:
        read: EncoderFamily = family(Watched(options | {"architectures": [f"X{end}"]}, Path("config.json")))
        _ = read.tensors(), read.tied
    a = encoder_of(find_description(name), name)
    heads = f"{a.heads} heads of {a.head_channels} channels"
    types = f"{a.types} token types" if a.types > 1 else "one token type"
    padding = "" if a.pad_counts else "; a text that holds the padding token is refused, since it has no position"
    lines = [
        *_options(kind, family, name),
        f"* {a.layers} layers, width {a.width}, {heads}, feed-forward width {a.feed_forward}, activation {a.activation}.",
        f"* {a.vocabulary} tokens, {a.positions} positions, {types}{padding}.",
        f"* LayerNorm behind each residual sum, epsilon {a.norm.epsilon:g}; learned positions.",
        f"* Heads, by the class in `architectures`: {', '.join(f'`...{end}`' for end in HEADS)}.",
        f"* What the client may get, by the head: {', '.join(OUTPUTS)} ([encoders.md](../encoders.md#what-is-read)).",
    ]
    shares = "Random checkpoints of odd and of random sizes: [encoders.md](../encoders.md#error)."
    return "\n".join([*lines, "", *_bounds(kind), "## On shares", "", shares, ""])


def _bounds(kind: str) -> list[str]:
    said = [MEASURED[kind]] if kind in MEASURED else []
    if kind in CITED["largest"]:
        said.append(_cited(kind))
    if not said:
        said.append("Not measured: no weights of this family were at hand, and no published measurement was found.")
    return ["## Bounds", "", " ".join([*said, CALIBRATED]), ""]


def _cited(kind: str) -> str:
    """Return what others have measured, with the bound that each needs: a row's norm is little more than an entry that
    stands out, and bounds have a margin of one bit."""
    largest = CITED["largest"][kind]
    shown = []
    for model, value, _ in largest:
        smaller = CITED["held_smaller"].get(model, 1)
        bound = f"`residual={least_bound('residual', MARGIN * value / smaller)}`"
        held = f", held {smaller} times smaller" if smaller != 1 else ""
        shown.append(f"{model} {value:,} ({bound}{held})".replace(",", " ", value > 999))
    sources = dict.fromkeys(CITED["sources"][source] for _, _, source in largest)
    what = CITED["what"].get(kind, "Largest entry of the residual stream")
    return f"{what}, as published: {', '.join(shown)}. Source: {'; '.join(sources)}."


def _options(kind: str, family: type[CheckpointFamily], name: str) -> list[str]:
    """Return a page up to its computed part, of the options that were noted."""
    refused = {k: why for k, why in _Noted.refused.items() if UNSUPPORTED.get(k) != why}
    known = [key for key in _Noted.read if (key not in refused and key not in UNSUPPORTED) or key in family.computes]
    module = sys.modules[family.__module__].__doc__ or ""
    said = " ".join((family.__doc__ or "").partition("\n\n")[0].split())
    return [
        f"# {kind}",
        "",
        f"Generated by `make families`; not edited by hand. {' '.join(module.split())}",
        "",
        f"{said} `{family.__module__.replace('.', '/')}.py`; example: `{name}`, a known shape "
        f"(`mpcache estimate --model {name}`).",
        "",
        "## Options read",
        "",
        ", ".join(f"`{key}`" for key in sorted(known)),
        "",
        "## Options refused",
        "",
        *[f"* `{key}`: {why}" for key, why in sorted(refused.items())],
        "* What no family computes, or this one does not: [index](index.md#refused-unless-a-page-says-that-it-is-read).",
        "",
        "## Computed",
        "",
    ]


def _computed(a: Architecture, family: type) -> list[str]:
    """Return lines about the example's architecture."""
    values = [f"{field} {getattr(a, field)}" for field in FIELDS if getattr(a, field) not in (None, False)]
    heads = f"{a.heads} query and {a.kv_heads} key/value heads of {a.head_channels} channels"
    positions = "learned positions" if a.learned_positions else "relative positions"
    if a.rotary is not None:
        positions = (
            f"rotary positions on {a.rotary.turning(a.head_channels)} of {a.head_channels} channels ({a.rotary.scaling})"
        )
    windows = {window for n in range(a.layers) if (window := a.window(n)) is not None}
    kind = "LayerNorm" if issubclass(family, Standard) and family.layer_norm else "RMSNorm"
    return [
        f"* {a.layers} layers{_encoder(a)}, width {a.width}, {heads}, feed-forward width {a.feed_forward}.",
        f"* {a.vocabulary} tokens, {a.positions} positions.",
        f"* {kind}; {positions}" + (f"; windows of {', '.join(map(str, sorted(windows)))}" if windows else "") + ".",
        f"* {', '.join(values)}.",
    ]


def _on_shares(kind: str) -> list[str]:
    """Return lines about the sweep's outcomes for a family's random checkpoints (`tests.tools.family_sweep`)."""
    found = {
        cell: outcome for cell, outcome in recorded(RECORD).items() if kind_of(cell.name) == kind and cell.policy == "full"
    }
    command = f"`python -m tests.tools.family_sweep --record {RECORD.relative_to(FOLDER.parents[1])}`"
    if not found:
        return [f"Not recorded yet; {command} runs it."]
    rows = [
        f"| {_named(cell)} | {cell.suite} | {cell.parties} | {one.equal} of {one.prompts} | {one.tokens} | {one.flagged} | "
        f"{one.error:.4f} |"
        for cell, one in sorted(found.items(), key=lambda item: astuple(item[0]))
    ]
    return [
        f"Random checkpoints of odd sizes against transformers' greedy tokens ({command} goes on where it was):",
        "",
        "| checkpoint | suite | parties | prompts with equal tokens | tokens each | flagged | largest error of a logit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _named(cell: Cell) -> str:
    return f"{cell.name}, sizes {cell.seed}" if cell.seed else cell.name


def _encoder(a: Architecture) -> str:
    return "" if a.encoder is None else f", {a.encoder_layers} of them an encoder"


def costs(name: str) -> tuple[int, float, float]:
    """Return rounds, sent kB and dealt MB of the second layer of three for a token behind `CACHED` others; where an encoder
    reads the prompt, of one of the decoder's, behind as many tokens of the prompt as well."""
    a = decoder_of(find_description(name), name)
    first = a.encoder_layers
    three, layer, read = (a.reduced([0, first, first + 1, first + 2]), 2, CACHED) if first else (with_layers(a, 3), 1, 0)
    with torch.inference_mode():
        found = trace_step(three, Setting("masked"), CACHED, read=read).layer(layer)
    rounds, sent, dealt = (found.total(field) for field in ("rounds", "bytes_sent", "offline_bytes"))
    return round(rounds), sent / 1e3, dealt / 1e6


def index(figures: bool) -> str:
    """Return the page about all families. figures: count costs, else leave them out."""
    rows = []
    for kind, (name, _) in examples().items():
        shown = "{} | {:.0f} | {:.2f}".format(*costs(name)) if figures else "- | - | -"
        rows.append(f"| [{kind}]({kind}.md) | `{name}` | {find_description(name).width} | {shown} |")
    return "\n".join(
        [
            "# Model families",
            "",
            "Generated by `make families`; not edited by hand. A checkpoint's family is `model_type` of its config.json.",
            f"Costs: one layer of the example for a token behind {CACHED} others, suite `masked`, 2 parties; GPT-2's first. "
            f"Of T5 one of the decoder, with a prompt of {CACHED} tokens beside.",
            "",
            "| family | example | width | rounds a layer | sent by a party, kB | dealt, MB |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            BESIDE,
            "",
            "## Encoders",
            "",
            f"A text of {TEXT} tokens, once, by suite `masked`, 2 parties, all layers and the mean of the rows; first "
            "GPT-2, of a prompt as long.",
            "",
            "| family | example | width | rounds | sent by a party, MB | dealt, MB |",
            "| --- | --- | --- | --- | --- | --- |",
            *_encoder_rows(figures),
            "",
            "How to add one: [architecture.md](../architecture.md#where-something-new-goes).",
            "",
            "## Refused unless a page says that it is read",
            "",
            "Options that change what a model computes are refused by name, unless a family's page says that it reads them:",
            "",
            *[f"* `{key}`: {why}" for key, why in sorted(UNSUPPORTED.items())],
            "",
        ]
    )


def _encoder_rows(figures: bool) -> list[str]:
    """Return the index's rows of encoders."""
    rows = []
    for kind, (name, _) in {"gpt2": ("gpt2", {}), **encoder_examples()}.items():
        described, shown = find_description(name), "- | - | -"
        if figures:
            total = estimate(described, Setting("masked", decoding="greedy" if kind == "gpt2" else "mean"), TEXT, 1).total
            sent, dealt = (total.total(field) / 1e6 for field in ("bytes_sent", "offline_bytes"))
            shown = f"{total.total('rounds'):.0f} | {sent:.0f} | {dealt:.0f}"
        rows.append(f"| [{kind}]({kind}.md) | `{name}` | {described.width} | {shown} |")
    return rows


def without_figures(text: str) -> str:
    """Return an index with its figures left out."""
    return re.sub(r"(\| \d+) \| [^|]+ \| [^|]+ \| [^|]+ \|\n", r"\1 | - | - | - |\n", text)


def differing() -> list[str]:
    """Return the names of pages that are not what the registry gives, figures aside."""
    wanted = {f"{kind}.md": page(kind) for kind in FAMILIES} | {"index.md": index(False)}
    wanted |= {f"{kind}.md": encoder_page(kind) for kind in ENCODERS}
    there = {file.name: without_figures(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.md")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        names = differing()
        print(
            f"out of date: {', '.join(names)}; run `make families`" if names else "docs/families is as the registry gives it"
        )
        return int(bool(names))
    FOLDER.mkdir(exist_ok=True)
    for kind in FAMILIES:
        (FOLDER / f"{kind}.md").write_text(page(kind), encoding="utf-8")
    for kind in ENCODERS:
        (FOLDER / f"{kind}.md").write_text(encoder_page(kind), encoding="utf-8")
    (FOLDER / "index.md").write_text(index(True), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
