"""Parts about the machine: what it is, and whether every operation that suites use gives the CPU's result."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch

from tests.devices import STAND_IN, computing_on
from tests.tools.device_counts import narrow, run_roles
from tests.tools.gpu_check.timing import Row, timed
from tests.tools.gpu_check.work import plan_of, unwatched
from tests.tools.stand_in.mirror import mirrored

MEGABYTE = 1 << 20


def environment(device: str, small: bool) -> Iterator[Row]:
    """Versions, the chip, and the ceilings that other rows are seen against."""
    device = "cpu" if device == STAND_IN else device
    facts: Row = {"name": "machine", "ok": True, "python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"chip": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "processors": properties.multi_processor_count}
    yield facts
    size = (4 if small else 256) * MEGABYTE
    for kind in ("pageable", "pinned"):
        host = torch.empty(size, dtype=torch.uint8)
        if kind == "pinned":
            if not torch.cuda.is_available():
                continue
            host = host.pin_memory()
        there = host.to(device)
        yield timed(f"copy up, {kind}", lambda n, host=host: host.to(device), device, bytes=size)
        yield timed(f"copy down, {kind}", lambda n, there=there: there.cpu(), device, bytes=size)
    few = torch.zeros(8, dtype=torch.int64, device=device)

    def launches(n: int) -> None:
        for _ in range(1000):
            few.add_(1)

    yield timed("1000 launches", launches, device)
    yield timed("1000 waits", lambda n: [few.cpu() for _ in range(1000)], device)
    side = 256 if small else 8192
    for name, dtype in (("bfloat16", torch.bfloat16), ("float64", torch.float64), ("float32", torch.float32)):
        a = torch.ones((side, side), dtype=dtype, device=device)
        yield timed(f"product, {name}", lambda n, a=a: a @ a, device, operations=2 * side**3)
    digits = torch.ones((side, side), dtype=torch.int8, device=device)
    yield timed("product, int8", lambda n: torch._int_mm(digits, digits), device, operations=2 * side**3)


VOCABULARY = 2048  # of steps whose operations are compared: all kinds occur, in a fifth of the time


def operations(device: str, small: bool) -> Iterator[Row]:
    """Run whole steps on the stand-in, each operation a second time on the device, and compare all results."""
    for name in ("gpt2", "llama-2-7b"):
        for suite, policy in (
            ("masked", "full"),
            ("masked", "mpcache:preset=clusters,sharing=1,sinks=1,window=2,dynamic=0.4"),
        ):
            shape = narrow(name, 4, 1 if small else 2).model_copy(update={"vocabulary": VOCABULARY})
            for cached, prefill in ((24, 0), (0, 12)):
                with computing_on(STAND_IN), mirrored(device if device != STAND_IN else "cpu") as found:
                    run_roles(plan_of(shape, suite, policy, (cached, prefill), "cuda:0"), unwatched)
                wrong = sorted(found.wrong)
                row: Row = {"name": f"{name}, {suite}, {policy}, {cached or prefill} tokens", "ok": not wrong}
                yield row | {"kinds": len(found.seen), "operations": sum(found.seen.values()), "wrong": wrong[:20]}
