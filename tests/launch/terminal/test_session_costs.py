"""The cost report adds up to the ledgers it is made from."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launch.local.in_process import run_in_process
from launch.terminal.console import byte_count
from launch.terminal.session_costs import cost_tables, costs_by_stage, costs_json
from mpc.channel import MemoryChannel
from mpc.errors import ConfigurationError, PeerLost
from mpc.ledger import Cost, Ledger
from mpc.tape import DealerTape, PartyTape


def ledger(scale: int) -> dict[str, object]:
    made = Ledger()
    stages = ["model load", "prefill/embedding", "prefill/layer 0/attention", "prefill/layer 1/attention", "token 0"]
    stages += ["token 1/head", "token 1", "token 2/head", "token 2"]
    for number, name in enumerate(stages):
        made.at((name, "x")).add(Cost(bytes_sent=scale * 10**number, rounds=number + 1, offline_bytes=7))
    made.seconds = {"model load": 1.0, "prefill": 4.0, "prefill/layer 0/attention": 1.5, "prefill/layer 1/attention": 2.0}
    made.seconds |= {"token 0": 0.5, "token 1": 1.0, "token 1/head": 0.75, "token 2": 3.0, "token 2/head": 1.0}
    return made.to_json()


def test_stages() -> None:
    costs = costs_by_stage({"party1": ledger(2), "party0": ledger(1)})
    assert costs["prefill", ""].bytes_sent == {"party0": 11110, "party1": 22220}
    assert costs["prefill", ""].rounds == 2 + 3 + 4 + 5
    assert costs["prefill", ""].seconds == 4.5
    assert costs["prefill", "attention"].seconds == 3.5
    assert costs["prefill", "token choice"].bytes_sent == {"party0": 10000, "party1": 20000}
    assert costs["tokens", ""].seconds == 4.0
    assert costs["tokens", "output logits"].seconds == 1.75
    assert costs["tokens", "token choice"].seconds == 2.25
    assert costs["tokens", ""].divided(2).rounds == (6 + 7 + 8 + 9) / 2


@pytest.mark.parametrize("parties", [2, 3])
def test_everything_is_shown(parties: int) -> None:
    ledgers = {f"party{i}": ledger(1) for i in range(parties)}
    report = costs_json(ledgers)
    assert report["further_tokens"] == 2
    for party in ledgers:
        total = report["parties"][party]["bytes_sent"]
        assert total == 111111111 == sum(stage["bytes_sent"][party] for stage in report["stages"].values())
    console = Console(file=io.StringIO(), width=80)
    for table in cost_tables(ledgers):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "whole session" in text
    assert text.count("111.11 MB") == (2 if parties == 2 else 4)


def test_byte_counts() -> None:
    assert [byte_count(n) for n in (0, 999, 1000, 1_234_567, 2.5e9)] == ["0 B", "999 B", "1.00 KB", "1.23 MB", "2.50 GB"]


def test_in_process_raises_the_cause_and_not_its_consequence() -> None:
    def party(channel: MemoryChannel, tape: PartyTape) -> int:
        if channel.party == 1:
            raise ConfigurationError("the cause")
        channel.receive(1, 8)
        return 0

    def dealer(tape: DealerTape) -> None:
        raise PeerLost("party1", "dealing", "gone")

    with pytest.raises(ConfigurationError, match="the cause"):
        run_in_process(2, party, dealer)
    results, dealt = run_in_process(3, lambda channel, tape: channel.party, lambda tape: "dealt")
    assert (results, dealt) == ([0, 1, 2], "dealt")
