"""The in-memory channel: rounds, bytes, and what happens when a peer fails."""

from __future__ import annotations

import threading

import pytest

from mpc.channel import memory_channels
from mpc.errors import PeerLost, PeerSilent, WireError
from mpc.ledger import operation, stage


def _together(*functions: object) -> list[object]:
    results: list[object] = [None] * len(functions)

    def call(i: int) -> None:
        try:
            results[i] = functions[i]()  # type: ignore[operator]
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_exchange_all(parties: int) -> None:
    channels = memory_channels(parties)
    results = _together(*(lambda c=c: c.exchange_all(bytes([c.party]) * 4) for c in channels))
    assert results == [[bytes([i]) * 4 for i in range(parties)]] * parties
    for channel in channels:
        total = channel.ledger.total()
        assert (total.bytes_sent, total.bytes_received, total.rounds) == (4 * (parties - 1), 4 * (parties - 1), 1)
        assert total.messages == parties - 1


def test_messages_keep_their_order_and_book_their_operation() -> None:
    a, b = memory_channels(2)

    def first() -> None:
        with stage("decode"), operation("mul"):
            a.exchange({1: b"one"}, {})
            a.exchange({1: b"three"}, {1: 2})

    def second() -> list[bytes]:
        return [b.exchange({}, {0: 3})[0], b.exchange({0: b"ok"}, {0: 5})[0]]

    assert _together(first, second)[1] == [b"one", b"three"]
    cost = a.ledger.by_operation("decode")["mul"]
    assert (cost.bytes_sent, cost.bytes_received, cost.rounds, cost.messages) == (8, 2, 2, 2)


def test_bytes_of_a_shared_message_are_attributed() -> None:
    a, b = memory_channels(2)
    keys = {("s", "x"): 6, ("s", "y"): 2}
    _together(lambda: a.exchange_all(bytes(8), keys), lambda: b.exchange_all(bytes(8)))
    assert a.ledger.at(("s", "x")).bytes_sent == 6
    assert a.ledger.at(("s", "y")).bytes_sent == 2
    assert (a.ledger.at(("s", "x")).rounds, a.ledger.at(("s", "y")).rounds) == (1, 0)


def test_wrong_size_names_the_peer() -> None:
    a, b = memory_channels(2)
    b.send(0, b"four")
    with pytest.raises(WireError, match="party1 sent 4 bytes where 5 were expected"):
        a.receive(1, 5)


def test_silent_peer() -> None:
    a, _ = memory_channels(2, deadline=0.1)
    with pytest.raises(PeerSilent, match=r"party1: sent nothing for 0\.1 s \(during exchange\)"):
        a.receive(1, 5)


def test_lost_peer() -> None:
    a, b = memory_channels(2)
    b.close()
    with pytest.raises(PeerLost, match="party1: left the session"):
        a.receive(1, 5)
