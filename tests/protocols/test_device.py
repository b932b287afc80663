"""Suites and gates on a device: as on the CPU, with no tensor that lies elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.measure.gates.check import Gate, measure
from launch.measure.gates.masked_gates import masked_gates
from models.policies import parse
from protocols.suite import Norm
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

torch.manual_seed(5)
OTHERWISE = {"truncation", "powers", "gelu, segments, opened", "silu, brackets, lifted", "2^(3/2 x), window", "shuffle"}
POLICIES = (
    "mpcache:preset=clusters,sinks=1,window=2,dynamic=0.4",
    "h2o:budget=0.5",
    "quest:page=2,budget=0.5",
    "dynamic-top-k:budget=0.5",
)


async def functions(s: Any, x: Any, q: Any, k: Any) -> list[Any]:
    """What a layer asks for, and the head's arg-max: x [4, 16], q [2, 6, 8], k [2, 9, 8]."""
    mask = torch.ones(6, 9, dtype=torch.bool).tril(3)
    observed = torch.tensor([False] * 3 + [True] * 3)
    angle = torch.arange(24, dtype=torch.float64).reshape(6, 4) / 7
    cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))
    attended, mass = await s.attention_with_mass(q, k, k, mask, observed)
    normed = await s.rsqrt_moment(x, Norm("layer", 1e-5))
    return [
        attended,
        mass,
        await s.mul(x, await s.softmax(x)),
        await s.mul(normed, x),
        *[await s.activation(x, kind) for kind in ("gelu_tanh", "silu", "relu")],
        await s.rotate(q, cos, sin),
        await s.scale(x, 1.5) + 0.25 - torch.ones(16),
        await s.argmax(x),
        await s.max(x),
        await s.absolute(x),
    ]


async def choices(s: Any, x: Any, rows: Any) -> list[Any]:
    """What policies ask for: x [2, 12], rows [2, 12, 3]."""
    keep = await s.keep_largest(x, 5, 4.0)
    return [await s.top_k(x, 3, 4.0), keep, *(await s.compact(keep, [rows], 5))]


def grid(*shape: int) -> Tensor:
    return torch.randint(-12, 13, shape).double() / 8


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
def test_operations_of_every_suite(device: str, suite: str, parties: int) -> None:
    for program, inputs in (
        (functions, [grid(4, 16), grid(2, 6, 8), grid(2, 9, 8)]),
        (choices, [grid(2, 12), grid(2, 12, 3)]),
    ):
        expected = run_plain(program, inputs)
        for number, (found, wanted) in enumerate(zip(run_secure(suite, parties, program, inputs), expected, strict=True)):
            assert (found - wanted).abs().max() < 0.01, (program.__name__, number)


def test_crypten_s_own_functions(device: str) -> None:
    """They make their values from empty ones of the host, and write into their arguments."""
    x = grid(2, 3) / 4

    async def program(s: Any, v: Any) -> list[Any]:
        return [await s.mul(v, v), await s.activation(v, "relu")]

    for found, wanted in zip(run_secure("crypten", 2, program, [x], crypten_own=True), (x * x, x.relu()), strict=True):
        assert (found - wanted).abs().max() < 0.01


@pytest.mark.parametrize("text", POLICIES)
def test_policies(device: str, text: str) -> None:
    case = Case(tiny(heads=4, groups=2), tokens=24, steps=2, seed=len(text))

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(parse(text), s, *values)

    expected = run_plain(program, case.inputs)
    for found, wanted in zip(run_secure("masked", 2, program, case.inputs), expected, strict=True):
        assert (found - wanted).abs().max() < 0.01


def thinned(gate: Gate) -> Gate:
    """The gate at its ends and at some of many marks, which are all measured on the CPU."""

    def points(count: int) -> list[Tensor]:
        found = list(gate.points(count))
        first = found[0]
        if first.dim() != 1 or first.numel() < 500:
            return found
        places = torch.tensor(sorted({*range(0, first.numel(), 32), int(first.argmin()), int(first.argmax())}))
        return [x[places] for x in found]

    return replace(gate, points=points)


@pytest.mark.parametrize("parties", [2, 3])
def test_gates(device: str, parties: int) -> None:
    """Every gate whose error is tabulated, at ends and marks; with three parties those that have a form of their own."""
    gates = [gate for gate in masked_gates() if gate.parties in (None, parties)]
    if parties == 3:
        gates = [gate for gate in gates if gate.group in OTHERWISE or gate.name in OTHERWISE]
    assert len(gates) > 8
    for gate in gates:
        row = measure(thinned(gate), "masked", parties, 8)
        assert row.ok, row
