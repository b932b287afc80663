"""Distributed point functions: the same one-hot vectors as dealt tables, from shorter keys."""

from __future__ import annotations

import pytest
import torch

from mpc import ring
from mpc.channel import memory_channels
from mpc.errors import RangeError
from mpc.preprocessing import PrecomputedTape, PrecomputedValues, PreprocessingTape
from mpc.random import Prg, new_seed
from mpc.tape import HEADER_BYTES, CountingTape, DealerTape, PartyTape, chunks
from protocols.masked import dealing, dpf
from protocols.masked.context import Context, open_value
from protocols.masked.one_hot import one_hot_table
from protocols.masked.shares import Masked, Shared
from tests.protocols.gate_harness import Gate, chi_square, chi_square_limit, predict, run
from tests.tools import dealing_rates


@pytest.mark.parametrize(
    ("width", "bits"),
    [(6, 8), (6, 5), (6, 1), (12, 1), (11, 8), (8, 16), (7, 20), (9, 33), (10, 64), (3, 64), (12, 14)],
)
def test_shares_add_up_to_the_point(width: int, bits: int) -> None:
    shape = dpf.Shape(width, bits)
    size = 1 << width
    alpha = torch.cat([torch.arange(size)[:300], torch.tensor([size - 1, size // 2])])
    prg = Prg(new_seed())
    roots = [prg.ring((len(alpha), 2)) for _ in range(2)]
    key = dpf.generate(alpha, roots, shape)
    total = sum((dpf.evaluate(party, roots[party], key, shape) for party in (0, 1)), torch.tensor(0))
    assert torch.equal(ring.reduce(total, bits), torch.nn.functional.one_hot(alpha, size))


@pytest.mark.parametrize(
    ("ring_bits", "low", "width", "bits"),
    [(8, 0, 8, 16), (12, 5, 7, 13), (9, 0, 9, 64), (11, 0, 11, 1), (10, 0, 10, 16)],
)
def test_the_gate_equals_the_dealt_table(ring_bits: int, low: int, width: int, bits: int) -> None:
    x = torch.arange(1 << ring_bits)[:: max(1, (1 << ring_bits) // 256)].reshape(2, -1) >> low << low

    async def keys(c: Context, s: Shared) -> Shared:
        return dpf.one_hot_dpf(c, await open_value(c, s), low, width, bits)

    async def table(c: Context, s: Shared) -> Shared:
        return one_hot_table(c, await open_value(c, s), low, width, bits)

    found, cost = run(keys, [(x, ring_bits)]), predict(table, [(x.shape, ring_bits)], 2)
    digit = (x >> low) & ((1 << width) - 1)
    hot = ring.reduce(found.out, bits)
    # with low > 0 the borrow is not taken out: the digit or the one above
    above = torch.nn.functional.one_hot((digit + 1) & ((1 << width) - 1), 1 << width)
    exact = torch.nn.functional.one_hot(digit, 1 << width)
    assert bool(((hot == exact).all(-1) | ((hot == above).all(-1) if low else False)).all())
    assert (found.costs[0].rounds, found.costs[0].bytes_sent) == (cost.rounds, cost.bytes_sent)
    shape = dpf.Shape(width, bits)
    for party, counted in enumerate(found.costs):
        assert counted.offline_bytes == shape.key_bytes(x.numel()) + 5 * HEADER_BYTES, party
    assert found.costs[1].offline_bytes < cost.offline_bytes


def test_a_key_alone_does_not_depend_on_the_point() -> None:
    """All that a party gets is uniform for a fixed point, and its own output too; corrections without seeds fail it."""
    shape = dpf.Shape(8, 8)
    alpha = torch.full((4000,), 77)
    prg = Prg(new_seed())
    roots = [prg.ring((len(alpha), 2)) for _ in range(2)]
    seeds, controls, output = dpf.generate(alpha, roots, shape)
    for level in range(shape.depth):
        for word in range(2):
            assert chi_square((seeds[level, :, word] >> 1) & 255, 256) < chi_square_limit(256)
        assert chi_square(controls[level], 4) < chi_square_limit(4)
    for entry in range(shape.leaf):
        assert chi_square(output[:, entry], 256) < chi_square_limit(256)
    for party in (0, 1):
        share = dpf.evaluate(party, roots[party], (seeds, controls, output), shape)
        assert chi_square(share[:, 77], 256) < chi_square_limit(256)
        assert chi_square(share[:, 78], 256) < chi_square_limit(256)
    same = [roots[0], roots[0]]
    assert chi_square(dpf.generate(alpha, same, shape)[2][:, 77 % shape.leaf], 256) > 1000


def test_key_sizes() -> None:
    assert dpf.Shape(8, 16).key_bytes(1000) == 1000 * (4 * 16 + 1 + 32)
    assert dpf.Shape(12, 64).key_bytes(1) == 10 * 16 + 3 + 32


SHAPES = [(n, w, b) for n in (1, 30, 700, 5000) for w, b in ((2, 8), (4, 12), (6, 5), (6, 11), (6, 64), (8, 30), (9, 64))]


@pytest.mark.parametrize(("elements", "width", "bits"), SHAPES)
def test_the_dealing_that_is_taken_is_the_cheaper_one_as_counted(elements: int, width: int, bits: int) -> None:
    """Both are dealt; the bytes counted are the predicted ones, and the rule's work decides with them."""
    x = [((elements,), width)]

    async def taken(c: Context, s: Shared) -> Shared:
        return dealing.one_hot(c, await open_value(c, s), 0, width, bits)

    async def table(c: Context, s: Shared) -> Shared:
        return one_hot_table(c, await open_value(c, s), 0, width, bits)

    async def keys(c: Context, s: Shared) -> Shared:
        return dpf.one_hot_dpf(c, await open_value(c, s), 0, width, bits)

    def counted(gate: Gate) -> int:
        return predict(gate, x, 2).offline_bytes - HEADER_BYTES

    costs = {"table": dealing.table_cost(elements, width, bits)}
    assert counted(table) == costs["table"].offline_bytes + HEADER_BYTES
    if dpf.Shape(width, bits).depth >= 1:
        costs["dpf"] = dealing.key_cost(elements, width, bits)
        assert counted(keys) == costs["dpf"].offline_bytes + 4 * HEADER_BYTES
    cheapest = min(costs, key=lambda n: costs[n].dealer + costs[n].dealt_bytes / 1.25e8 + costs[n].party)
    assert dealing.choose_dealing(elements, width, bits, 2) == cheapest
    assert counted(taken) == counted(table if cheapest == "table" else keys)
    assert dealing.choose_dealing(elements, width, bits, 3) == "table"
    values = torch.arange(elements) & ((1 << width) - 1)
    assert torch.equal(run(taken, [(values, width)]).out, torch.nn.functional.one_hot(values, 1 << width))


def test_the_choice_follows_the_rates() -> None:
    assert dealing.choose_dealing(12 * 1024, 6, 11, 2) == "table"  # softmax's bins
    assert dealing.choose_dealing(12 * 64, 6, 64, 2) == "dpf"  # top-k's matrix
    assert dealing.choose_dealing(2, 8, 30, 2) == "table"  # a vocabulary's index
    slow_work = dealing.Rates(key_party_block=1e-5)
    assert dealing.choose_dealing(12 * 1024, 6, 64, 2, prefer="10ms/8mbit") == "dpf"
    assert dealing.choose_dealing(12 * 64, 6, 64, 2, slow_work) == "table"


def test_keys_of_a_tape_that_is_expanded_ahead() -> None:
    x = torch.arange(300) & 63
    seeds, pieces = [new_seed(), new_seed()], [[], []]  # type: ignore[var-annotated]

    def lookup(c: Context, m: torch.Tensor) -> Shared:
        lam = c.tape.random("open", (300,), 6)
        return dpf.one_hot_dpf(c, Masked(ring.reduce(m + lam, 6) if c.tape.dealing else m, lam, 6, 0), 0, 6, 64)

    dealer = DealerTape(seeds, lambda i, piece: pieces[i].append(piece))
    masks = []
    for party in (0, 1):  # both parties' parts of the mask: the test opens x itself
        masks.append(Prg(seeds[party]).ring((300,), 6))
    lookup(Context(dealer, None, 2), x)
    total = torch.zeros(300, 64, dtype=torch.int64)
    for party, channel in enumerate(memory_channels(2)):
        tape, store = PartyTape(seeds[party], party == 1, chunks(iter(pieces[party]))), PrecomputedValues()
        ahead = Context(PreprocessingTape(tape, store), None, 2)
        lookup(ahead, ahead.blank((300,)))
        online = Context(PrecomputedTape(store, channel.ledger), channel, 2)
        total += lookup(online, ring.reduce(x + masks[0] + masks[1], 6)).x
        assert len(store) == 0
    assert torch.equal(total, torch.nn.functional.one_hot(x, 64))


def test_work_is_measured() -> None:
    found = dealing_rates.measure(20_000, 2)
    assert min(found.table_dealer_entry, found.table_party_entry, found.key_dealer_level) > 0
    assert max(found.key_party_block, found.key_party_entry) > 0


def test_what_point_functions_cannot_do_is_named() -> None:
    for parties, width, words in ((3, 8, "for two parties, there are 3"), (2, 3, "fits one leaf")):
        c = Context(CountingTape(), None, parties)
        with pytest.raises(RangeError, match=words):
            dpf.one_hot_dpf(c, Masked(c.blank((4,)), c.blank((4,)), 8, 0), 0, width, 16)
