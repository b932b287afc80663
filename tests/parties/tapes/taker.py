"""A process that takes tapes until none is left, as soon as it is told to: `python -m tests.parties.tapes.taker ROOT
CERTIFICATES PAIRS SESSION`. Prints "ready", and at the end the names of what it got."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mpc.errors import TapeError
from parties.identity.certificates import check
from parties.identity.trust import Peer
from parties.tapes.store import TapeStore


def main() -> None:
    """Take them."""
    own, pairs = check(Path(sys.argv[2]), "party1"), [(load, tape) for load, tape in json.loads(sys.argv[3])]
    store, got = TapeStore(Path(sys.argv[1]), "party1", 1, Peer("dealer", "dealer"), lambda: own), []
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        try:
            got.append(store.take(pairs, sys.argv[4], "7" * 32).header.tape)
        except TapeError:
            break
    print(json.dumps(got))


if __name__ == "__main__":
    main()
