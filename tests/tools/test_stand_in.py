"""The stand-in device refuses what CUDA refuses, names the line, and counts what CUDA would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.devices import STAND_IN, computing_on
from tests.tools.stand_in.counts import ROOT, counting
from tests.tools.stand_in.memory import watching
from tests.tools.stand_in.patches import shapes_alone
from tests.tools.stand_in.tensor import DeviceMistake, StandIn


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with computing_on(STAND_IN):
        yield


def planted(text: str) -> Callable[..., Any]:
    """A function of x as if a file of the project held it, in line 2."""
    names: dict[str, Any] = {"torch": torch}
    exec(compile(f"def f(x):\n    return {text}", f"{ROOT}protocols/masked/planted.py", "exec"), names)
    found: Callable[..., Any] = names["f"]
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x + torch.arange(6)", r"same device, got cpu \[\(6,\)\] beside cuda:0"),
        ("torch.stack([x, torch.zeros(6, dtype=torch.int64)])", "same device"),
        ("torch.where(x > 0, x, torch.arange(6))", "same device"),
        ("x.gather(0, torch.zeros(6, dtype=torch.int64))", "same device"),
        ("x.numpy()", "can't convert cuda:0"),
        ("x.reshape(2, 3) @ x.reshape(3, 2)", "not implemented on CUDA for torch.int64"),
        (
            "torch._int_mm(*[x.to(torch.int8).repeat(8).reshape(8, 6)[:, :6], x.to(torch.int8).repeat(8).reshape(6, 8)])",
            "16",
        ),
        ("torch.empty(6, device='meta') + x", "without content"),
    ],
)
def test_what_cuda_refuses_fails_with_file_and_line(text: str, words: str) -> None:
    x = torch.arange(6).to("cuda")
    with pytest.raises(DeviceMistake, match=rf"^protocols/masked/planted.py:2: .*{words}"):
        planted(text)(x)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("(x * 2 + 1).reshape(2, 3).t()", {"kernel": 2}),
        ("x.cpu()", {"down": 1, "wait": 1}),
        ("x.to('cpu')", {"down": 1, "wait": 1}),
        ("int(x.sum())", {"kernel": 1, "down": 1, "wait": 1}),
        ("x[torch.tensor([0, 2])]", {"kernel": 1, "up": 1}),
        ("x[x > 1]", {"kernel": 2, "wait": 1}),
        ("torch.zeros(3, device='cuda:0') + 1", {"kernel": 2}),
        ("x + torch.tensor(3)", {"kernel": 1}),
        ("torch.arange(6).to(x.device)", {"up": 1}),
    ],
)
def test_what_cuda_does_is_counted_by_line(text: str, counted: dict[Any, int]) -> None:
    x = torch.arange(6).to("cuda")
    with counting() as counts:
        found = planted(text)(x)
    kinds = ("kernel", "up", "down", "wait")
    assert {kind: counts.total("MainThread", kind) for kind in kinds} == {kind: counted.get(kind, 0) for kind in kinds}
    for kind in counted:
        assert [at for at, _, _ in counts.by_line("MainThread", kind)] == ["protocols/masked/planted.py:2"]
    assert found is not None


def test_results_are_those_of_the_cpu() -> None:
    x = torch.arange(-8, 8).reshape(4, 4)

    def f(t: Tensor) -> Tensor:
        out = torch.zeros_like(t)
        out[1:] += t[:-1] ^ (t.cumsum(-1)[1:] >> 1)
        out.scatter_(1, (t & 3), t)
        return torch.nn.functional.one_hot(out & 3, 4).sum(1) + torch.cat([out, t.flip(0)], 0).reshape(2, 4, 4).sum(0)

    found = f(x.to("cuda"))
    assert isinstance(found, StandIn)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), f(x))


def test_memory_is_what_is_held_at_once() -> None:
    with watching() as memory:
        x = torch.zeros(1000, dtype=torch.int64).to("cuda")
        shown = x.reshape(10, 100).t()[1:]
        memory.begin()
        held = memory.role()
        assert (held.now, held.more) == (8000, 0)
        y = x + 1
        del y
        z = (x + 2).to(torch.int8)  # beside what it is made of
        assert (held.now, held.more) == (9000, 9000)
        assert sorted(size for _, size in held.by_line()) == [1000, 8000]
        del x, z
        assert held.now == 8000
        assert shown.shape == (99, 10)


def test_shapes_alone_are_of_any_size_and_zero_at_the_host() -> None:
    with shapes_alone(), watching() as memory:
        x = torch.empty(1 << 20, 1 << 20, device="cuda")
        assert memory.role().now == 4 << 40
        assert x[:2, 3].cpu().tolist() == [0, 0]
