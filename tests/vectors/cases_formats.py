"""The vectors of what everything else is made of: generator, packing, fixed point, tape, client shares, point functions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mpc import fixed_point, ring
from mpc.packing import pack
from mpc.random import Prg, derive_seed
from parties.tapes import file as tape_file
from parties.wire import shares
from protocols import gumbel
from protocols.masked import dpf
from protocols.masked.dealing import choose_dealing
from protocols.masked.piecewise import Piecewise, normalised_power
from tests.vectors.recording import Case, Output, Role, elements, octets, record, seed_of, whole

LABELS: list[list[str | int | bytes]] = [[], ["tape at rest", "0" * 32], ["a", 7], ["range flags"]]


def generator() -> dict[str, Any]:
    """Bytes and ring elements of one stream, and derived seeds."""
    seed = seed_of("generator")
    prg = Prg(seed)
    draws: list[dict[str, Any]] = [{"bytes": n, "is": octets(prg.bytes(n))} for n in (5, 16, 70_000)]
    for bits in (1, 8, 9, 16, 17, 32, 33, 64):
        draws.append({"bits": bits, "is": elements(prg.ring((2, 3), bits), bits)})
    narrow = prg.words((4,), 13)
    draws.append({"bits": 13, "is": elements(narrow, 13)})
    derived = [
        {"labels": [part if isinstance(part, str) else str(part) for part in labels], "is": derive_seed(seed, *labels).hex()}
        for labels in LABELS
    ]
    return {"seed": seed.hex(), "draws": draws, "derived": derived}


def packing() -> dict[str, Any]:
    """Nine elements of every ring."""
    cases = []
    for bits in range(1, 65):
        x = ring.reduce(whole((9,), f"packing {bits}", bits), bits)
        cases.append({"bits": bits, "value": elements(x, bits), "is": octets(pack(x, bits))})
    return {"cases": cases}


def numbers() -> dict[str, Any]:
    """Reals to ring elements and back; products of matrices modulo 2^bits."""
    reals = [0.0, 1.0, -1.0, 0.5, -0.5, 2.5, 3.5, 1e-5, -123.456, 0.00034332275390625]
    coded = []
    for frac, bits in ((0, 16), (12, 24), (14, 44), (16, 64), (20, 64)):
        x = fixed_point.encode(torch.tensor(reals, dtype=torch.float64), frac, bits)
        back = fixed_point.decode(x, frac, bits).tolist()
        coded.append({"frac": frac, "bits": bits, "reals": reals, "is": elements(x, bits), "decoded": back})
    products = []
    for bits in (24, 44, 64):
        a, b = whole((2, 5), "left", 64), whole((5, 3), "right", 64)
        products.append(
            {"bits": bits, "left": elements(a, 64), "right": elements(b, 64), "is": elements(ring.matmul(a, b, bits), bits)}
        )
    return {"fixed_point": coded, "products": products}


def noise() -> dict[str, Any]:
    """Gumbel noise of given random words, the first and the last ones among them."""
    last = (1 << 53) - 1
    words = torch.tensor([0, 1, 1 << 20, 1 << 52, last - (1 << 20), last - 1, last])
    source: Any = SimpleNamespace(ring=lambda shape, bits: words)
    scaled = []
    for temperature, frac, bits in ((1.0, 20, 64), (0.75, 10, 21), (100.0, 10, 24)):
        x = fixed_point.encode(gumbel.gumbel(words.shape, source) * temperature, frac, bits)
        scaled.append({"temperature": temperature, "frac": frac, "bits": bits, "is": elements(x, bits)})
    return {"words": elements(words, 53), "scaled": scaled}


def _tape_program(role: Role, given: Sequence[Tensor] | None, arguments: dict[str, Any]) -> list[Output]:
    """Every kind of entry once: what is dependent is computed from what is random."""
    tape = role.tape
    dealing = role.channel is None
    a = tape.random("first", (2, 3), 13)
    b = tape.random("second", (4,), 64, "xor")
    own = tape.random_shares("third", (2,), 64)
    square = tape.dependent("square", (2, 3), (lambda: a * a) if dealing else None, 20)
    inverse = tape.dependent("inverse", (4,), (lambda: ~b) if dealing else None, 64, "xor")
    table = tape.table("table", (2, 3, 2), (lambda: torch.stack([a, a + 1], -1)) if dealing else None, 11)
    common = tape.common("common", (3,), (lambda: torch.tensor([1, 2, 511])) if dealing else None, 9)
    if dealing:
        return []
    whole_common = common if role.channel is not None and role.channel.party == 0 else torch.zeros_like(common)
    return [
        Output(a, 13, 0),
        Output(b, 64, 0, "xor"),
        Output(own[0], 64, 0),
        Output(square, 20, 0),
        Output(inverse, 64, 0, "xor"),
        Output(table.to(torch.int64), 11, 0),
        Output(whole_common, 9, 0),
    ]


def tape() -> dict[str, Any]:
    """Entries of every kind, two and three parties."""
    return {"cases": [record(Case(f"tape, {n} parties", "tape", n, [], _tape_program)) for n in (2, 3)]}


def tape_on_disk() -> dict[str, Any]:
    """What a tape's files hold but for the signature, which is not deterministic: one short tape, one of two chunks."""
    return {"cases": [_tape_file("1" * 32, 300), _tape_file("2" * 32, tape_file.CHUNK + 5)]}


def _tape_file(name: str, length: int) -> dict[str, Any]:
    seed, stream = seed_of("tape file", name), Prg(seed_of("tape stream", name)).bytes(length)
    found: dict[str, Any] = {}

    def validated(values: dict[str, Any]) -> dict[str, Any]:
        found.update(values)
        return values

    dealer: Any = SimpleNamespace(name="dealer")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(tape_file.TapeHeader, "model_validate", validated),
        mock.patch.object(tape_file, "seal", return_value=b""),
    ):
        writer = tape_file.TapeWriter(Path(folder), name, seed)
        for start in range(0, length, 100_000):
            writer.append(stream[start : start + 100_000])
        writer.finish(dealer)
        file = (Path(folder) / f"{name}.tape").read_bytes()
    facts = {key: found[key] for key in ("tape", "length", "seed", "chunks")}
    stream_seed = seed_of("tape stream", name).hex()
    return {"seed": seed.hex(), "stream": {"generator": stream_seed, "size": length}, "header": facts, "file": octets(file)}


def client_shares() -> dict[str, Any]:
    """A tensor's shares: seeds for all parties but the last, the rest for that one."""
    cases = []
    for parties in (2, 3):
        x = whole((2, 5), "client shares", 40)
        seeds = [seed_of("client shares", parties, i) for i in range(parties - 1)]
        sent = b"".join(shares.corrections(shares.pieces(x), seeds))
        expanded = [elements(shares.expand(seed, x.shape, "client"), 64) for seed in seeds]
        cases.append(
            {
                "parties": parties,
                "value": elements(x, 64),
                "seeds": [s.hex() for s in seeds],
                "shares": expanded,
                "last": octets(sent),
            }
        )
    return {"cases": cases}


def point_functions() -> dict[str, Any]:
    """Keys and both parties' evaluations; and which dealing dealer and parties choose."""
    cases = []
    for width, bits in ((3, 64), (5, 40), (6, 30), (7, 11), (6, 8)):
        shape = dpf.Shape(width, bits)
        alphas = torch.tensor([0, (1 << width) - 1, 5])
        roots = [Prg(seed_of("roots", width, bits, p)).ring((3, 2)) for p in range(2)]
        seeds, controls, output = dpf.generate(alphas, roots, shape)
        found = [dpf.evaluate(p, roots[p], (seeds, controls, output), shape) for p in range(2)]
        cases.append(
            {
                "width": width,
                "bits": bits,
                "points": alphas.tolist(),
                "roots": [elements(r, 64) for r in roots],
                "seed_corrections": elements(seeds, 64),
                "control_corrections": elements(controls, 2),
                "output_corrections": elements(output, bits),
                "shares": [octets(pack(share, bits)) for share in found],
            }
        )
    chosen = [
        [count, width, bits, parties, choose_dealing(count, width, bits, parties)]
        for count in (1, 64, 4096)
        for width in (2, 6, 8, 10)
        for bits in (1, 11, 16, 64)
        for parties in (2, 3)
    ]
    return {"cases": cases, "choice": chosen}


def coefficients() -> dict[str, Any]:
    """Polynomials of the piecewise functions, as the dealer computes them."""
    curves: dict[str, Piecewise] = {f"power {exponent:g}": normalised_power(exponent) for exponent in (-1.0, -0.5)}
    return {
        "curves": {
            name: {"start": f.low, "width": f.width, "coefficients": f.coefficients.tolist()} for name, f in curves.items()
        }
    }
