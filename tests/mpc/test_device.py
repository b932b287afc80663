"""What is written down for a device gives what torch gives, by operations and as Triton kernels, in few launches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.device import launches, node, recorded
from mpc.device.deferred import Deferred, known, settle
from mpc.device.folding import folded
from mpc.device.launches import Launch, by_operations
from mpc.device.products import by_triton
from mpc.device.triton_launch import run
from mpc.packing import pack, unpack
from mpc.random import Prg, new_seed
from mpc.ring import reduce
from mpc.wide import Wide, shifted
from tests.devices import STAND_IN, computing_on
from tests.tools.stand_in.counts import counting


def here(x: Tensor) -> Deferred:
    """A tensor of the host as one of a device."""
    return Deferred(node.held(x))


def words(*shape: int, bits: int = 64) -> Tensor:
    return Prg(new_seed()).ring(shape, bits)


def interpreted() -> None:
    """Skip where Triton is not installed, or would want a GPU."""
    if not pytest.importorskip("triton").knobs.runtime.interpret:
        pytest.skip("a GPU is there: tests marked cuda run kernels on it")


@pytest.fixture(params=["operations", "triton"])
def ran(request: pytest.FixtureRequest) -> Iterator[list[Launch]]:
    """All launches of a test, run one way."""
    if request.param == "triton":
        interpreted()
    made: list[Launch] = []

    def backend(launch: Launch) -> list[Tensor]:
        made.append(launch)
        return run(launch) if request.param == "triton" else by_operations(launch)

    launches.backends.append(backend)
    yield made
    launches.backends.remove(backend)


def arithmetic(x: Any, y: Any) -> Any:
    return (x * 3 - y + (x ^ y) + ((x >> 5) << 2) | (y & 0xFFFF_FFFF_0000)) + ~x - (-y) + (x ^ -(1 << 63))


def comparing(x: Any, y: Any) -> Any:
    return torch.where(x < y, x, y + 1) + (x >= 0).to(torch.int64) + (1 - (x == y).to(torch.int64)) + (x != 7)


def moving(x: Any, y: Any) -> Any:
    both = torch.cat([x.t().reshape(4, 3)[1:], y.permute(1, 0)[::2]], 0)
    more = torch.stack([both, both + 1], 1).reshape(-1)
    return more[None, 1:9:3].expand(2, -1) + x[:2, 0, None] - y[-1, ..., :1].movedim(0, -1) + x.unsqueeze(1)[:2, 0, :3]


def summing(x: Any, y: Any) -> Any:
    return (x[:, :, None] * y[:, None, :]).sum((0, 2)) + torch.stack([x, y]).sum(0, keepdim=True).sum(1)[0]


def looking(x: Any, y: Any) -> Any:
    places = y & 3
    return x.gather(1, places) + x[0].take(places) + (x.t() + 0)[y[0] & 3].sum(0)[None, :1] * 1


def narrow(x: Any, y: Any) -> Any:
    a, b = x.to(torch.int8), y.to(torch.int32)
    a += a
    b &= 1023
    return a.to(torch.int64) + b.to(torch.int64) + torch.zeros_like(x) + torch.full_like(x, -5) + x.new_zeros((1, 4))


def changing(x: Any, y: Any) -> Any:
    z = x + y
    kept = z.clone()
    z *= 3
    z ^= kept
    view = z.reshape(-1)
    view += 1
    z[0, 1] = 7
    return torch.cat([z, kept, view.reshape(3, 4)])


@pytest.mark.parametrize("program", [arithmetic, comparing, moving, summing, looking, narrow, changing])
def test_programs_give_what_torch_gives(ran: list[Launch], program: Callable[[Any, Any], Any]) -> None:
    x, y = words(3, 4), words(3, 4)
    x[0], y[0, 0] = y[0], -(1 << 63)
    found = program(here(x.clone()), here(y.clone()))
    assert isinstance(found, Deferred)
    assert torch.equal(found.cpu(), program(x.clone(), y.clone()))


@pytest.mark.parametrize("count", [1, 7, 300])
def test_bits_are_packed_as_at_the_host(ran: list[Launch], count: int) -> None:
    every = (1, 3, 5, 8, 13, 16, 20, 24, 31, 38, 40, 57, 63, 64)
    for bits in every if count == 300 else (5, 31, 64):  # an interpreted kernel takes a sixth of a second
        x = words(count)
        data = pack(x, bits)
        there = recorded.packed(here(x), bits)
        assert there.cpu().numpy().tobytes() == data
        behind = here(torch.frombuffer(bytearray(b"\1\2\3" + data), dtype=torch.uint8))[3:]
        assert torch.equal(recorded.unpacked(behind, bits, (count,)).cpu(), unpack(data, bits, (count,)))
    whole = torch.cat([recorded.packed(here(words(count)), bits) for bits in (13, 64)])
    assert whole.cpu().numel() == -(-count * 13 // 8) + 8 * count


def test_wide_words(ran: list[Launch]) -> None:
    a, b, c = (words(5) for _ in range(3))

    def product(x: Any, y: Any, z: Any) -> Any:
        return shifted((Wide.of(x) * y + Wide(z, y)) << 3, 70, 128)

    there = [here(t) for t in (a, b, c)]
    big = [(int(x) * int(y) + (int(z) % 2**64) + (int(y) << 64)) * 8 % 2**128 >> 70 for x, y, z in zip(a, b, c, strict=True)]
    assert product(*there).cpu().tolist() == big
    assert len(ran) <= 2


def test_sums_of_many_elements(ran: list[Launch]) -> None:
    x = words(2, 700, 3)
    for dim, keepdim in ((1, True), (-2, False)):
        assert torch.equal(here(x).sum(dim, keepdim=keepdim).cpu(), x.sum(dim, keepdim=keepdim))
    assert torch.equal((here(x[0, :, 0]) + 1).sum().cpu(), (x[0, :, 0] + 1).sum())


def test_the_xor_of_many_words(ran: list[Launch]) -> None:
    for count in (1, 128, 300):
        x = words(count)
        found = folded(here(x))
        assert isinstance(found, Tensor)
        assert int(found) == folded(x)


@pytest.mark.parametrize(("rows", "along"), [(1, True), (3, False)])
def test_products_of_few_rows(rows: int, along: bool) -> None:
    interpreted()
    a, b = words(2, 1, rows, 37), words(2, 1, 37, 19)
    other = b.transpose(2, 3).contiguous().transpose(2, 3) if along else b
    assert torch.equal(by_triton(a, other), a @ b)
    small = b.to(torch.int32)
    assert torch.equal(by_triton(a, small), a @ small.to(torch.int64))


def test_a_chain_is_one_launch_of_all_that_is_held(ran: list[Launch]) -> None:
    x = here(words(40))
    a = ((x + 1) * 3 ^ 5) & 255
    b = a * 2 + x
    settle()
    assert [len(launch.outputs) for launch in ran] == [2]
    assert torch.equal(b.cpu(), a.cpu() * 2 + x.cpu())
    assert len(ran) == 1


def test_what_nobody_holds_is_not_computed(ran: list[Launch]) -> None:
    x = here(words(40))
    del x
    here(words(3)) + 1
    settle()
    assert ran == []


def test_sizes_do_not_make_another_kernel(ran: list[Launch]) -> None:
    from mpc.device.triton_source import key, source

    for count in (30, 31):
        (here(words(2, count)).t()[1:] + here(words(2))).cpu()
    assert key(ran[0]) == key(ran[1])
    assert source(ran[0]).text == source(ran[1]).text


def random_program(seed: int) -> Callable[[Any, Any], Any]:
    """Some operations on x and y of one shape [a, b], each on what was there before it."""
    draw = random.Random(seed)
    steps = [(draw.randrange(9), draw.randrange(100), draw.randrange(100)) for _ in range(draw.randrange(2, 14))]

    def program(x: Any, y: Any) -> Any:
        made = [x, y]
        for op, i, j in steps:
            a, b = made[i % len(made)], made[j % len(made)]
            made.append(
                [
                    lambda a, b: a + b,
                    lambda a, b: (a ^ b) >> 3,
                    lambda a, b: torch.where(a < b, a * 3, b),
                    lambda a, b: a.sum(0, keepdim=True) + b,
                    lambda a, b: a[:1].expand(b.shape[0], -1) - b,
                    lambda a, b: torch.cat([a[:, 1:], b[:, :1]], 1),
                    lambda a, b: a.reshape(-1).reshape(b.shape),
                    lambda a, b: (a[:, None, :] * b[None, :, :]).sum(0).sum(0, keepdim=True) + a,
                    lambda a, b: a.t().reshape(b.shape),
                ][op](a, b)
            )
        return torch.cat([z.reshape(-1) for z in made[-3:]])

    return program


def test_a_stretch_is_decided_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of one length gives what torch gives of others, by the kernels of the first; where sizes decide, each
    way is kept."""
    from mpc.device.triton_source import key

    decided: list[int] = []
    decide = launches._decided
    keys: dict[launches.Form, tuple[object, ...]] = {}

    def backend(launch: Launch) -> list[Tensor]:
        assert launch.form is not None
        assert keys.setdefault(launch.form, key(launch)) == key(launch)
        return by_operations(launch)

    def counted(order: Any, wanted: Any) -> Any:
        decided.append(len(order))
        return decide(order, wanted)

    monkeypatch.setattr(launches, "_forms", {})
    monkeypatch.setattr(launches, "_decided", counted)
    monkeypatch.setattr(launches, "backends", [backend])
    programs = [random_program(seed) for seed in range(25)]
    kept = []
    for a, b in [(3, 5), (4, 3), (2, 60), (70, 3), (1, 5), (4, 1), (5, 3)]:
        for program in programs:
            x, y = words(a, b), words(a, b)
            assert torch.equal(program(here(x), here(y)).cpu(), program(x, y))
        kept.append(len(decided))
    assert kept[0] == kept[1] == len(programs)
    assert kept[-1] == kept[-2]


def test_what_has_no_elements_is_not_launched(ran: list[Launch]) -> None:
    x = here(words(0, 3))
    assert (x * 3 + 1).cpu().shape == (0, 3)
    assert recorded.unpacked(here(torch.zeros(0, dtype=torch.uint8)), 13, (0, 2)).cpu().shape == (0, 2)
    assert ran == []
    assert x.sum(0).cpu().tolist() == [0, 0, 0]


def test_the_host_does_not_wait_for_what_it_knows() -> None:
    x, secret = words(6), words(6)
    with computing_on(STAND_IN), counting() as counts:
        there = known(Deferred(node.held(x.to("cuda"))), lambda: x)
        assert torch.equal(reduce(there.reshape(2, 3) + 5, 20)[0].cpu(), reduce(x[:3] + 5, 20))
        assert counts.total("MainThread", "down", "wait") == 0
        assert torch.equal((there + Deferred(node.held(secret.to("cuda")))).cpu(), x + secret)
        assert counts.total("MainThread", "wait") == 1
