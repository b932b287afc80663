"""`python -m tests.soak --sessions 100 --clients 8 --restarts 10`: a summary, and a line of JSON; exit code 1: problems."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from launch.lab import iproute
from tests.soak.deployment import DEALER
from tests.soak.run import Soak, run


def main(
    sessions: Annotated[int, typer.Option(min=2, help="Sessions that must succeed; failed ones come on top.")] = 100,
    clients: Annotated[int, typer.Option(min=1)] = 8,
    restarts: Annotated[int, typer.Option(min=0, help="Times that a role is killed and started again.")] = 10,
    network: Annotated[str, typer.Option(help="A profile of the lab.")] = "lan",
    victims: Annotated[str, typer.Option(help="Who is killed, with commas.")] = f"{DEALER},party1",
    suite: Annotated[str, typer.Option()] = "masked",
    tapes: Annotated[bool, typer.Option("--tapes", help="Tapes from disk; no dealer runs.")] = False,
    paged: Annotated[bool, typer.Option("--paged", help="Caches in pages of the stores, sessions in step.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is asked and when who is killed.")] = 1,
) -> None:
    """Many sessions in the network lab while roles are killed and restarted."""
    if (why := iproute.problem()) is not None:
        sys.exit(f"error [environment]: {why}")
    targets = tuple(name for name in victims.split(",") if not (tapes and name == DEALER))
    summary = run(Soak(sessions, clients, restarts, network, targets, suite, tapes, seed, paged))
    print(f"{summary['succeeded']} sessions gave the right tokens, {summary['failed']} failed: {summary['errors']}")
    print(f"killed and restarted: {summary['kills']}; longest session {summary['longest_session_seconds']} s")
    for name, gauge in summary["idle"].items():
        print(f"{name}: after half the sessions and at the end: {gauge}")
    for problem in summary["problems"]:
        print(f"PROBLEM: {problem}")
    print(json.dumps(summary))
    sys.stdout.flush()
    os._exit(bool(summary["problems"]))


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    typer.run(main)
