"""The vectors of what leaves a program, both suites: exact floors, outputs, and scores with a sample's noise."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import torch
from torch import Tensor

from protocols.crypten import output
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.suite import CryptenSuite
from protocols.crypten.value import own_value
from protocols.masked.context import open_value
from protocols.masked.shares import Masked, Shared
from protocols.masked.suite import MaskedSuite
from protocols.masked.truncation import floor, truncate
from protocols.masked.values import MaskedTensor
from protocols.suite import Value
from tests.vectors import cases_crypten, cases_masked
from tests.vectors.cases_masked import real
from tests.vectors.recording import Case, Input, Output, Program, Role


def _twice(values: Sequence[int], bits: int, frac: int) -> Input:
    """Equal values under different masks: what is exact is the same for both."""
    return Input(torch.tensor([values, values]), bits, frac)


# ---- masked ----------------------------------------------------------------------------------------------------------
def _masked() -> dict[str, list[Case]]:
    async def floored(s: MaskedSuite, x: Masked, count: int, frac: int) -> Shared:
        return await floor(s.context, x, truncate(s.context, x, count))

    async def taken(s: MaskedSuite, x: Shared, magnitude: int, form: str) -> MaskedTensor:
        found = s.convert.new(await open_value(s.context, x) if form == "masked" else x, magnitude)
        found.watched = "activation" if form == "checked" else None
        return found

    async def released(s: MaskedSuite, x: Shared, magnitude: int, form: str) -> list[Any]:
        found = s.output(await s.released(await taken(s, x, magnitude, form)))
        return [Shared(found.share, found.bits, found.fraction_bits), s.flags()]

    async def sampled(s: MaskedSuite, x: Shared, temperature: float, magnitude: int, form: str) -> list[Any]:
        scores = await s.perturbed(await taken(s, x, magnitude, form), temperature)
        choice = await s.argmax(scores)
        return [scores.as_shared(), choice.as_shared(), s.flags()]

    def floors(count: int, parties: Sequence[int]) -> list[Case]:
        unit = 1 << count
        x = _twice([0, 1, -1, unit - 1, unit, -unit, -unit - 1, 5 * unit // 3, (1 << 43) - 1, -(1 << 43)], 44, 28)
        return cases_masked.cases("floor", floored, [x], {"count": count, "frac": 28}, parties)

    def outputs(x: Input, magnitude: int, form: str, parties: Sequence[int]) -> list[Case]:
        given = {"magnitude": magnitude, "form": form}
        return cases_masked.cases("released", released, [x], given, parties, opened=False)

    def samples(x: Input, temperature: float, form: str, parties: Sequence[int] = (2, 3)) -> list[Case]:
        given = {"temperature": temperature, "magnitude": 9, "form": form}
        return cases_masked.cases("sample", sampled, [x], given, parties, opened=False)

    whole, logits = [0, 1, -1, 65535, 65536, -65537, (37 << 30) // 7, -(250 << 30)], [[3.0, 2.5, -1.25]]
    return {
        "floor": [*floors(5, (2,)), *floors(10, (3,)), *floors(16, (2, 3)), *floors(32, (2,))],
        "released": [
            *outputs(_twice(whole, 64, 30), 9, "checked", (2, 3)),
            *outputs(_twice(whole[-2:], 64, 30), 8, "checked", (2,)),  # beyond its bound
            *outputs(_twice(whole[-4:], 44, 30), 9, "masked", (3,)),
            *outputs(_twice(whole[-4:], 64, 30), 9, "shared", (2,)),
            *outputs(real([3.5, -250.0], 30, 14), 9, "checked", (2,)),  # nothing to cut
        ],
        "sample": [
            *samples(real(logits, 64, 30), 0.75, "checked"),
            *samples(real(logits, 42, 30), 20.0, "checked"),
            *samples(real(logits, 26, 14), 1.5, "masked", (2,)),
            *samples(real(logits, 64, 30), 1.5, "shared", (2,)),
        ],
    }


# ---- crypten ---------------------------------------------------------------------------------------------------------
def _program(f: Callable[..., Coroutine[Any, Any, list[Output]]], x: Input) -> Program:
    """f(suite, value, **arguments) by each role's suite."""

    def run(role: Role, shares: Sequence[Tensor] | None, arguments: dict[str, Any]) -> list[Output]:
        suite = CryptenSuite(parties=role.parties, tape=role.tape, channel=role.channel)
        value = suite.input(tuple(x.x.shape), None if shares is None else shares[0].clone(), x.frac)
        found: list[Output] = suite.run(f(suite, value, **arguments))
        return found

    return run


def _crypten() -> dict[str, list[Case]]:
    def floored(s: CryptenSession, x: Tensor, count: int) -> list[Output]:
        return [Output(output.floor(s, x, count), 64, 36 - count)]

    async def released(s: CryptenSuite, x: Value) -> list[Output]:
        found = s.output(await s.released(x))
        return [Output(found.share, found.bits, found.fraction_bits)]

    async def perturbed(s: CryptenSuite, x: Value, temperature: float) -> list[Output]:
        found = own_value(await s.perturbed(x, temperature))
        return [Output(found.share, 64, found.fraction_bits)]

    def floors(count: int, parties: Sequence[int]) -> list[Case]:
        unit = 1 << count
        x = _twice([1, -1, unit - 1, unit, 5 * unit // 3, (1 << 62) - (1 << 20), (1 << 20) - (1 << 62)], 64, 36)
        return cases_crypten.cases("floor", floored, [x], {"count": count}, parties)

    def suites(gate: str, f: Any, x: Input, given: dict[str, Any], parties: Sequence[int] = (2, 3)) -> list[Case]:
        words = "".join(f", {k} {v}" for k, v in given.items())
        named, run = f"crypten {gate}", _program(f, x)
        return [Case(f"{named}{words}, {n} parties", named, n, [x], run, given) for n in parties]

    logits = [[3.0, 2.5, -1.25]]
    return {
        "crypten_released": floors(10, (2,))
        + floors(16, (3,))
        + floors(40, (2,))
        + suites("released", released, _twice([-5, (1 << 20) - 1, -(1 << 20), (37 << 36) // 7], 64, 36), {}),
        "crypten_sample": suites("perturbed", perturbed, real(logits, 64, 36), {"temperature": 0.75})
        + suites("perturbed", perturbed, real(logits, 64, 16), {"temperature": 20.0}, (2,)),
    }


def output_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    return {**_masked(), **_crypten()}
