"""Ranking 64 clusters in 12 heads, as the suite does it for a policy: at most four rounds, and nothing is opened.

Messages are counted where they leave a party, not in its ledger; with two parties a round is one message each.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from launch.local.in_process import run_in_process
from mpc.channel import MemoryChannel
from mpc.fixed_point import decode, encode
from mpc.ring import reduce
from protocols.masked.suite import MaskedSuite
from tests.protocols.gate_harness import chi_square, chi_square_limit
from tests.protocols.masked.harness import additive

HEADS, CLUSTERS, CHANNELS, KEPT = 12, 64, 64, 16


@pytest.mark.parametrize("parties", [2, 3])
def test_four_rounds_from_queries_to_the_choice(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities of queries with cluster representatives, all ranked, and the k x 64 one-hot rows of the choice."""
    torch.manual_seed(7)
    q, middle = (torch.randint(-4, 5, (HEADS, n, CHANNELS)) * 0.25 for n in (1, CLUSTERS))  # exact, with ties
    shares = [additive(encode(x, 14), parties) for x in (q, middle)]
    lock = threading.Lock()
    sent: list[list[int]] = [[] for _ in range(parties)]
    opened: list[tuple[torch.Tensor, int]] = []
    revealed: list[torch.Tensor] = []
    send = MemoryChannel.send

    def counted(self: MemoryChannel, peer: int, payload: bytes) -> None:
        with lock:
            sent[self.party].append(len(payload))
        send(self, peer, payload)

    async def program(suite: MaskedSuite, party: int | None) -> Any:
        mine = [
            suite.input(x.shape, None if party is None else s[party], 14) for x, s in zip((q, middle), shares, strict=True)
        ]
        query, keys = await suite.together(suite.mask_queries(mine[0]), suite.mask_for_cache(mine[1]))  # as a step has them
        if party == 0:
            sent[0].clear()
        suite.ledger.costs.clear()
        near = await suite.scores(query, keys)
        return await suite.top_k(near[:, 0], KEPT, suite.similarity_bound)

    def at_party(channel: Any, tape: Any) -> Any:
        suite = MaskedSuite(parties=parties, tape=tape, channel=channel)
        if channel.party == 0:
            suite.context.observer = lambda m, bits: opened.append((m.cpu(), bits))
        suite.context.revealed = lambda m, bits: revealed.append(m)
        return suite.output(suite.run(program(suite, channel.party))), suite.ledger.total()

    def at_dealer(tape: Any) -> Any:
        return suite_output(MaskedSuite(parties=parties, tape=tape, channel=None))

    def suite_output(suite: MaskedSuite) -> Any:
        return suite.output(suite.run(program(suite, None)))

    monkeypatch.setattr(MemoryChannel, "send", counted)
    results, _ = run_in_process(parties, at_party, at_dealer)
    total = sum(r[0].share.cpu() for r in results)
    first = results[0][0]
    chosen = decode(reduce(total, first.bits), first.fraction_bits, first.bits)
    expected = (q @ middle.transpose(1, 2))[:, 0].argsort(dim=-1, descending=True, stable=True)[:, :KEPT]
    assert torch.equal(chosen, torch.nn.functional.one_hot(expected, CLUSTERS).double())
    rounds = results[0][1].rounds
    assert rounds <= 4
    assert len(sent[0]) == rounds * (parties - 1)  # what the ledger calls a round is one message to each peer
    assert sum(sent[0]) == results[0][1].bytes_sent
    assert not revealed
    for m, bits in opened[2:]:  # after the query's and the clusters'
        if bits <= 8:
            assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)
