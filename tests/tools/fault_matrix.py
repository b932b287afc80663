"""Every fault of every role in every phase: `python -m tests.tools.fault_matrix` prints what a person sees, as a table; with
`--tls` of streams that have left gRPC.

All roles run in this process, each line between two of them goes through a relay. A killed role is one whose connections end
and whose address refuses; a paused or cut off one says nothing and its connections stay; a restarted one knows nothing of
the session. (Real signals to real processes: `tests/parties/test_faults.py`.)
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mpc.errors import MpcacheError, PeerLost
from tests.parties.deployment import Deployment
from tests.parties.relay import Relay
from tests.parties.toy import Toy, expected

FAULTS = ("killed", "cut off", "slowed", "restarted")
PHASES = ("handshake", "model load", "prefill", "decode", "tape")
ROLES = ("party1", "dealer", "client")
PROMPT = [3, 1]
TOKENS = 8
VOCABULARY = 40
DEADLINE, WINDOW = 2.0, 3.0
BULK = {"grpc": {"bulk": "off"}, "tls": {"bulk": "required"}}
LINES = (("client", "party0"), ("client", "party1"), ("party1", "party0"), ("party0", "dealer"), ("party1", "dealer"))


@dataclass(frozen=True)
class Outcome:
    """What the client saw (None: the right tokens), and after how many seconds."""

    error: MpcacheError | None
    seconds: float

    def text(self) -> str:
        """For a person, without what differs from run to run."""
        if self.error is None:
            return "(the session succeeds)"
        text = re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", str(self.error))
        text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
        return re.sub(r"\(unavailable: .*?\)+ ", "(unavailable: REASON) ", text)


class Matrix:
    """Two parties and a dealer with a relay on every line. way: of streams between servers, "grpc" or "tls"
    (`parties.transport.line`)."""

    def __init__(self, folder: Path, checkpoint: Path, way: str = "grpc") -> None:
        self.toy = Toy()
        self.deployment = Deployment(
            folder, 2, self.toy.program, deadline_seconds=DEADLINE, resume_seconds=WINDOW, connect_seconds=3, **BULK[way]
        )
        addresses = dict(zip([*self.deployment.names, "dealer"], self.deployment.addresses, strict=True))
        self.lines = {line: Relay(addresses[line[1]]) for line in LINES}
        self._hit = threading.Event()
        self._phase = ""
        self._precision = 8
        for name in ("dealer", "party0", "party1"):
            server = self.deployment.start_one(name, **(self._near(name) if name != "dealer" else {}))
            if way == "tls" and ("party1", name) in self.lines:
                port = self.lines["party1", name].also(f"127.0.0.1:{server.lines.port}")
                server.lines.port, server.lines.local = port, ""  # as on another host
        self.reference = self.deployment.share(checkpoint)
        self.toy.before_round = self._at_round
        self.toy.before_load = self._at_load

    def _near(self, name: str) -> dict[str, object]:
        """The addresses that a role knows."""
        parties = self.deployment.values("client", "client")["parties"]
        for party in parties:
            if (name, party["name"]) in self.lines:
                party["address"] = self.lines[name, party["name"]].address
        values: dict[str, object] = {"parties": parties}
        if name.startswith("party"):
            values["dealer"] = {"name": "dealer", "address": self.lines[name, "dealer"].address}
        return values

    # ---- phases ----------------------------------------------------------------------------------------------------
    def _at_load(self, party: int) -> None:
        if party == 0:
            self._reach("model load")
        time.sleep(0.02)  # long enough to be hit in

    def _at_round(self, party: int, step: int, round: int) -> None:
        if party == -1 and step == 2:
            self._reach("tape")
        elif party == 0 and round == 1 and step in (0, 2):
            self._reach("decode" if step else "prefill")
        time.sleep(0.02)

    def _reach(self, phase: str) -> None:
        if phase == self._phase:
            self._phase = ""
            self._hit.set()

    # ---- faults ----------------------------------------------------------------------------------------------------
    def _lines_of(self, role: str) -> list[Relay]:
        return [relay for line, relay in self.lines.items() if role in line]

    def strike(self, fault: str, role: str) -> None:
        """Let it happen."""
        lines = self._lines_of(role)
        if fault == "killed":
            for line in lines:
                line.stop()
        elif fault == "cut off":
            for line in lines:
                line.open.clear()
        elif fault == "slowed":
            for line in lines:
                line.slow = 0.05
        else:
            server = self.deployment.servers[role]
            gone = list(server.sessions.all())
            server.sessions._live.clear()
            for session in gone:
                session.end()
            for line in lines:
                line.cut()
            for session in gone:
                session._error = PeerLost(role, "test", "is gone")
                for stream in list(session.streams):
                    stream.wake()
                session.on_fail()

    def repair(self, fault: str, role: str) -> None:
        """The role is there again."""
        for line in self._lines_of(role):
            line.slow = 0.0
            if fault == "killed":
                line.start()
            elif fault == "cut off":
                line.open.set()
                line.cut()

    def cell(self, fault: str, phase: str, role: str) -> Outcome:
        """One fault in one phase, and then a session that succeeds without anybody else being touched."""
        self._hit.clear()
        self._phase = phase
        self._precision = 8 + (self._precision - 7) % 12  # another load, so that there is a model load to hit
        struck = threading.Thread(target=self._strike_at, args=(fault, phase, role))
        struck.start()
        began = time.monotonic()
        error = None
        try:
            self._session(TOKENS)
        except MpcacheError as problem:
            error = problem
        outcome = Outcome(error, time.monotonic() - began)
        self._hit.set()
        struck.join()
        self.repair(fault, role)
        limit = time.monotonic() + DEADLINE + WINDOW + 8
        while any(server.sessions.all() for server in self.deployment.servers.values()):
            if time.monotonic() > limit:
                raise AssertionError(f"{role} {fault} in {phase}: a session was not freed")
            time.sleep(0.02)
        self._session(2)
        return outcome

    def _strike_at(self, fault: str, phase: str, role: str) -> None:
        if phase == "handshake":
            while not self.deployment.servers["party0"].sessions.all() and not self._hit.is_set():
                time.sleep(0.001)
        else:
            self._hit.wait()
        self.strike(fault, role)

    def _session(self, tokens: int) -> None:
        client = self.deployment.client(**self._near("client"))
        result = client.ask(PROMPT, tokens, model=self.reference, fraction_bits=self._precision, stop_ids=())
        if result.tokens != expected(PROMPT, tokens, VOCABULARY):
            raise AssertionError("a session succeeded with wrong tokens")

    def close(self) -> None:
        """Stop everything."""
        self.deployment.stop()
        for line in self.lines.values():
            line.close()


def cells() -> list[tuple[str, str, str]]:
    """All that make sense: a client does not listen, so it cannot be dialled again; only the dealer has a tape phase."""
    return [
        (fault, phase, role)
        for role in ROLES
        for phase in PHASES
        for fault in FAULTS
        if (role != "client" or fault != "restarted") and (phase != "tape" or role == "dealer")
    ]


def check(fault: str, role: str, outcome: Outcome) -> None:
    """What every cell must hold. Raises `AssertionError`."""
    where = f"{role} {fault}: {outcome.text()}"
    if fault == "slowed":
        assert outcome.error is None, where
        return
    assert outcome.seconds < DEADLINE + WINDOW + 12, where
    if outcome.error is None:  # over before the fault could show
        return
    named = getattr(outcome.error, "peer", "")
    assert named == role if role != "client" else named in ("party0", "party1", "client"), where


def main() -> int:
    """Print the table; exit code 1 if a cell is wrong."""
    from tests.parties.conftest import make_checkpoint

    wrong = 0
    print("| role | fault | phase | seconds | what the client sees |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        way = "tls" if "--tls" in sys.argv[1:] else "grpc"
        matrix = Matrix(Path(folder) / "deployment", make_checkpoint(Path(folder) / "checkpoint"), way)
        try:
            for fault, phase, role in cells():
                outcome = matrix.cell(fault, phase, role)
                print(f"| {role} | {fault} | {phase} | {outcome.seconds:.1f} | {outcome.text()} |", flush=True)
                try:
                    check(fault, role, outcome)
                except AssertionError as error:
                    wrong += 1
                    print(f"wrong: {error}", file=sys.stderr)
        finally:
            matrix.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
