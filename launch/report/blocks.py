"""The tables of pages, generated from committed results: what stands between two markers of a name is replaced.

<!-- results: NAME -->
...
<!-- /results -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.predict.networks import NETWORKS
from launch.report.gpu import check_tables
from launch.report.network_model import predict
from launch.report.paper import paper_tables
from launch.report.rows import FULL, Row, counted, pick, tokens
from launch.report.rows import prompts as prompt_rows
from launch.report.tables import (
    Table,
    exponents,
    network_table,
    on_network,
    peer_table,
    prompt_peer_table,
    ratios,
    seconds_text,
)
from launch.terminal.console import byte_count
from mpc.errors import ConfigurationError

BLOCK = re.compile(r"(<!-- results: (?P<name>[a-z-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
GPT2 = "gpt2"
GPU = "gpu"
PROMPT_SECONDS = ("dealer_seconds", "prepare_seconds", "seconds")
LENGTHS = (128, 1024, 2048, 4096, 8192)


def thousands(value: int) -> str:
    """Return a whole number with its thousands apart.

    >>> thousands(1024)
    '1 024'
    """
    return f"{value:,}".replace(",", " ")


def glance(rows: Sequence[Row]) -> str:
    """Return what a prompt and a token cost in the suite masked with the full cache, a row a model: what was measured, or of
    larger models what the network alone takes."""
    found = [r for r in rows_at_a_glance(rows) if r.cell.suite == "masked" and r.cell.policy == FULL and r.cell.parties == 2]
    lines = []
    for row in sorted(found, key=lambda r: (r.predicted, r.cell.model, not r.of_prompt)):
        what = f"a prompt of {thousands(row.cell.prompt)} tokens, once" if row.of_prompt else "each token of the answer"
        wan, measured = on_network(rows, row, "wan")
        if wan is None:
            there = f"{seconds_text(predict(NETWORKS['wan'], row.rounds, row.bytes_sent, 0.0))} s, network alone"
        else:
            there = f"{seconds_text(wan)} s{'' if measured else ', predicted'}"
        memory = row.measured.get("peak_memory_bytes", {}).get("party")
        lines.append(
            (
                f"shape of {row.cell.model}: {what}",
                "-" if row.seconds is None else f"{seconds_text(row.seconds)} s",
                there,
                byte_count(row.bytes_sent),
                byte_count(row.offline_bytes),
                "-" if memory is None else byte_count(memory),
            )
        )
    header = ("", "one machine, 2 cores", "WAN", "sent by a party", "dealt to a party", "a party's memory")
    return Table("", "", header, tuple(lines)).markdown()


def rows_at_a_glance(rows: Sequence[Row]) -> list[Row]:
    """Return of each model its shortest prompt that was measured, else predicted, and its token behind 1 024 others."""
    out = [r for r in counted(rows) if r.cell.prompt == 1024]
    for model in dict.fromkeys(r.model for r in out):
        of_model = sorted(pick(prompt_rows(rows), model=model, policy=FULL), key=lambda r: (r.predicted, r.cell.prompt))
        out += of_model[:1]
    return out


def _token_cell(row: Row) -> str:
    layer = row.measured["per_layer"]
    return f"{layer['rounds']:.0f} rounds, {layer['bytes_sent'] / 1e6:.2f} MB"


def _by_length(rows: Sequence[Row], columns: Sequence[tuple[str, dict[str, object]]], first: str) -> str:
    found = [r for r in counted(rows) if r.model == GPT2 and r.cell.parties == 2]
    lengths = sorted({r.cell.prompt for _, wanted in columns for r in pick(found, **wanted, prompt=LENGTHS)})
    lines = []
    for length in lengths:
        cells = [pick(found, prompt=length, **wanted) for _, wanted in columns]
        lines.append((thousands(length), *(_token_cell(c[0]) if c else "" for c in cells)))
    dealt = [pick(found, prompt=1024, **wanted) for _, wanted in columns]
    lines.append(("dealt to a party for a token, 1 024", *(byte_count(c[0].offline_bytes) if c else "" for c in dealt)))
    return Table("", "", (first, *(title for title, _ in columns)), tuple(lines)).markdown()


def suites(rows: Sequence[Row]) -> str:
    """Return the rounds and bytes per layer of the full cache, by suite."""
    columns: list[tuple[str, dict[str, object]]] = [
        (f"`{suite}`", {"suite": suite, "policy": FULL, "options": {}}) for suite in ("masked", "crypten")
    ]
    return _by_length(rows, columns, "cached tokens")


def policies(rows: Sequence[Row]) -> str:
    """Return the rounds and bytes per layer of the suite masked, by policy."""
    found = [r for r in counted(rows) if r.model == GPT2 and r.cell.suite == "masked"]
    names = [FULL, *dict.fromkeys(r.cell.policy for r in found if r.cell.policy != FULL)]
    columns: list[tuple[str, dict[str, object]]] = [
        ("full cache" if name == FULL else f"`{name}`", {"suite": "masked", "policy": name}) for name in names
    ]
    return _by_length(rows, columns, "prompt")


def seconds(rows: Sequence[Row]) -> str:
    """Return the measured seconds of one token of GPT-2 base."""
    found = [r for r in tokens(rows) if r.model == GPT2 and r.seconds is not None]
    lines = []
    for row in sorted(found, key=lambda r: (r.cell.prompt, r.cell.suite, r.cell.policy)):
        lines.append(
            (
                thousands(row.cell.prompt),
                row.label,
                seconds_text(row.seconds),
                seconds_text(row.measured["prepare_seconds"]["median"]),
                seconds_text(row.measured["dealer_seconds"]["median"]),
                byte_count(row.bytes_sent),
            )
        )
    header = ("cached", "suite, policy", "seconds", "before it, from the tape alone", "dealer's seconds", "sent by a party")
    return Table("", "", header, tuple(lines)).markdown()


def prompts(rows: Sequence[Row]) -> str:
    """Return the costs of a prompt up to its first token; where nothing was run, rounds and bytes by the estimate."""
    lines = []
    for row in prompt_rows(rows):
        lines.append(
            (
                f"{row.title}, {thousands(row.cell.prompt)}",
                row.label,
                f"{row.rounds:.0f}",
                byte_count(row.bytes_sent),
                byte_count(row.offline_bytes),
                *(seconds_text(row.measured.get(name, {}).get("median")) for name in PROMPT_SECONDS),
                "estimate" if row.predicted else "measured",
            )
        )
    header = ("prompt", "suite, policy", "rounds", "sent", "dealt", "dealer's seconds", "before it", "seconds", "")
    return Table("", "", header, tuple(lines)).markdown()


def growth(rows: Sequence[Row]) -> str:
    """Return the fitted exponent of each policy's bytes."""
    lines = [
        (label, f"{first} to {last}", f"{b:.2f}")
        for model, label, first, last, b in exponents(rows)
        if model == GPT2 and label.startswith("masked")
    ]
    return Table("", "", ("suite, policy", "lengths", "bytes grow with length to the power"), tuple(lines)).markdown()


def against_full(rows: Sequence[Row]) -> str:
    """Return the ratios to the full cache."""
    lines = [
        (
            r.row.label,
            str(r.row.cell.prompt),
            f"{r.bytes_ratio:.2f}x",
            "-" if r.seconds_ratio is None else f"{r.seconds_ratio:.2f}x",
        )
        for r in ratios(rows)
        if r.row.model == GPT2 and r.row.cell.prompt in LENGTHS
    ]
    return Table(
        "", "", ("suite, policy", "cached", "bytes, full / policy", "seconds, full / policy"), tuple(lines)
    ).markdown()


def peers(rows: Sequence[Row]) -> str:
    """Return other systems beside this one."""
    table = peer_table(rows)
    return "" if table is None else table.markdown()


def prompt_peers(rows: Sequence[Row]) -> str:
    """Return other systems beside this one at a prompt."""
    table = prompt_peer_table(rows)
    return "Not in these results (docs/bench/peers.yaml)." if table is None else table.markdown()


def networks(rows: Sequence[Row]) -> str:
    """Return shaped networks beside the prediction."""
    table = network_table(rows)
    return "" if table is None else table.markdown()


def paper(rows: Sequence[Row]) -> str:
    """Return the paper's tables, with headings."""
    return "\n\n".join(f"### {table.title}\n\n{table.note}\n\n{table.markdown()}" for table in paper_tables(rows))


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "glance": glance,
    "suites": suites,
    "policies": policies,
    "seconds": seconds,
    "prompts": prompts,
    "growth": growth,
    "against-full": against_full,
    "peers": peers,
    "prompt-peers": prompt_peers,
    "networks": networks,
    "paper": paper,
}


def filled(text: str, rows: Sequence[Row] | None, check: Mapping[str, Any] | None = None) -> str:
    """Return the text with every block made again: from results, and block `GPU` from a check of a GPU. Blocks of what is
    not given stay. Raises `ConfigurationError` for a block of an unknown name, and for a text that has none."""
    if BLOCK.search(text) is None:
        raise ConfigurationError("there is no block '<!-- results: NAME -->' ... '<!-- /results -->' to fill")

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in (*BLOCKS, GPU):
            raise ConfigurationError(f"results block '{name}' is unknown; there are: {', '.join((*BLOCKS, GPU))}")
        if name == GPU:
            made = None if check is None else check_tables(check)[1].markdown()
        else:
            made = None if rows is None else BLOCKS[name](rows)
        return match[0] if made is None else f"{match[1]}\n{made}\n\n{match[3]}"

    return BLOCK.sub(block, text)
