"""One server in a process of its own: `python -m tests.parties.role_process CONFIG.json ROUNDS`. Prints "ready"."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from parties.config.role_config import make_config
from parties.dealer.dealer import DealerServer
from parties.party.compute_party import ComputePartyServer
from parties.program import MODEL
from tests.parties.toy import Toy, slow


def main() -> None:
    """Serve until killed. ROUNDS 0: the real program; else a toy of that many rounds, `pause` seconds before each."""
    values, rounds, pause = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), float(sys.argv[3])
    config = make_config(values)
    toy = Toy(rounds)
    if pause:
        toy.before_round = slow(pause)
    program = toy.program if rounds else MODEL
    server = DealerServer(config, program) if config.role == "dealer" else ComputePartyServer(config, program)
    server.start()
    print("ready", flush=True)
    server.wait()


if __name__ == "__main__":
    main()
