"""Preprocessing in a session: a thread runs the preprocessing pass of the program while this party waits for the network.

What it prepares (see `mpc.preprocessing`) waits in memory, at most `LIMIT_BYTES` of it. The thread reads the tape, and
nobody else does from then on. It ends with its program, with the session, or when `stop` is called; an error of it is raised
where the online pass needs what could not be prepared.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import Tensor

from mpc.preprocessing import PrecomputedTape, PrecomputedValues, PreprocessingTape, Stopped
from mpc.role_process import processors
from mpc.tape import PartyTape
from parties.config.role_config import RoleConfig
from parties.party.kept_rows import KeptRows
from parties.program import SessionProgram
from parties.transport.channel import GrpcChannel
from parties.transport.session import Session
from protocols.suite import OutputShare, Suite

LIMIT_BYTES = 256 << 20  # a step of GPT-2 with 1 024 cached tokens takes 180 MB
CORES = 4  # from so many on there is one to spare
SWITCH_SECONDS = 0.0002  # Python's own 5 ms would hold a round up
JOIN_SECONDS = 30.0


def wanted(config: RoleConfig) -> bool:
    """Whether a role's configuration, and with `preprocessing: auto` its machine, asks for it."""
    return config.preprocessing == "on" or (config.preprocessing == "auto" and processors() >= CORES)


class Preprocessing:
    """The preprocessing pass of one session. It is the `Endpoint` of its program. kept: what the client says of drafted
    rows, which this pass waits for as the online pass does."""

    def __init__(
        self,
        session: Session,
        program: SessionProgram,
        tape: PartyTape,
        weights: dict[str, Any],
        kept: KeptRows,
    ) -> None:
        self._session = session
        self._program = program
        self._tape = tape
        self._weights = weights
        self._kept = kept
        self._store = PrecomputedValues(LIMIT_BYTES, session.check)
        self._thread = threading.Thread(target=self._main, name=f"preprocessing {session.id[:8]}", daemon=True)

    def start(self, channel: GrpcChannel) -> Suite:
        """Begin to prepare; returns the suite of the online pass, whose ledger is the channel's."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        self._thread.start()
        return self._program.suite(PrecomputedTape(self._store, channel.ledger, self._program.device), channel)

    def stop(self) -> None:
        """Prepare no more; does not wait for the thread."""
        self._store.stop()

    def join(self) -> None:
        """Wait until the thread has ended; after `stop`, when the session's streams are closed."""
        self._thread.join(JOIN_SECONDS)

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                suite = self._program.suite(PreprocessingTape(self._tape, self._store), None)
                self._program.run(suite, self._weights, None, self)
            self._store.finish()
        except Stopped:
            self._store.finish()
        except Exception as error:
            self._store.finish(error)

    # ---- the endpoint ------------------------------------------------------------------------------------------------
    def emit(self, step: int, share: OutputShare) -> bool:
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        return None

    def kept(self, step: int, rows: int) -> int:
        """Wait for what the client says to the session itself."""
        return self._kept.wait(step)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Raises the session's error."""
        self._session.check()
