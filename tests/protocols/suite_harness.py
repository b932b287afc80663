"""One program on one of the suites `plain`, `crypten` and `masked`, with shares of the same float inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from launch.local import in_process
from protocols.plain.suite import PlainSuite, tensor_of
from tests.protocols.crypten.programs import evaluate
from tests.protocols.masked.harness import Program, run_masked

SECURE = [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)]


def run_plain(program: Program, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The program's results in floats."""
    suite = PlainSuite(dtype, in_process.DEVICE)

    async def main() -> Any:
        return await program(suite, *(suite.input(x.shape, x, 0) for x in inputs))

    found = suite.run(main())
    return [tensor_of(v).double().cpu() for v in (found if isinstance(found, list | tuple) else [found])]


def run_secure(name: str, parties: int, program: Program, inputs: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The program's results on shares; costs that dealer and estimate predict are compared with the counted ones."""
    if name == "masked":
        return run_masked(program, inputs, parties=parties, **options)[0]
    return evaluate(program, inputs, parties=parties, **options).values


def run_weighing(
    name: str, parties: int, program: Program, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """The results of program(suite, *inputs, *weights) on shares, the last ones given as weights of linear layers."""
    if name == "masked":
        return run_masked(program, inputs, weights, parties)[0]
    named = {f"w{n}": weight for n, weight in enumerate(weights)}

    async def whole(s: Any, *values: Any, **held: Any) -> Any:
        return await program(s, *values, *held.values())

    return evaluate(whole, inputs, parties=parties, weights=named).values
