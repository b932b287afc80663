"""What the parties of a session tell each other before anything is shared, and agree on or end the session.

A greeting says which manifest the party was given, by which client, which storing of the model's shares it holds, where its
tapes come from, and, from party 0, with which sessions it runs in step. So a session is one client's at all parties, and
parts of a model that were stored together.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpc.errors import ManifestMismatch, WireError
from parties.tapes.agreement import TapeAgreement, check_source
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import Manifest, check_client, check_id, compare


@dataclass(frozen=True)
class StepPlace:
    """A session's place among sessions in step. group: their id; number: its own."""

    group: str
    number: int


class Greetings:
    """The greetings of one session at one party.

    opening: this party's own greeting, but for its tapes. tapes: of a party that takes them from a folder, as `from_files`
    says. `storings` holds what every party has said of its storing of the model, this one included; `place` what party 0
    says of sessions in step, None where it says none.
    """

    def __init__(self, opening: wire.Hello, manifest: Manifest, tapes: TapeAgreement | None) -> None:
        self._opening = opening
        self._manifest = manifest
        self._tapes = tapes
        self.from_files = tapes is not None
        self.storings = {opening.name: opening.storing}
        self.place: StepPlace | None = None

    def own(self) -> wire.PeerMessage:
        """Return what this party says; waits for a tape that serves the session, if it needs one."""
        hello = wire.Hello()
        hello.CopyFrom(self._opening)
        if self._tapes is not None:
            self._tapes.greet(hello)
        if self.place is not None and self._is_first(hello.name):
            hello.group, hello.member = self.place.group, self.place.number
        return wire.PeerMessage(hello=hello)

    def heard(self, peer: str, hello: wire.Hello) -> None:
        """Take in what a peer says. Raises `ManifestMismatch` naming both sides where they differ, `WireError`."""
        own = self._opening
        if hello.session != own.session or hello.name != peer:
            raise WireError(f"{peer} did not greet as itself in this session")
        compare(own.name, self._manifest, peer, Manifest.parse(hello.manifest, peer))
        check_client(own.session, own.name, own.client, peer, hello.client)
        self.storings[peer] = check_id(hello.storing, "storing", peer)
        if hello.rows != own.rows:
            raise ManifestMismatch(
                f"{peer} holds rows of the prefix that another session computed than those of {own.name}: let the model "
                "owner take the prefix away and register it again"
            )
        check_source(own.name, self.from_files, peer, hello)
        if self._tapes is not None:
            self._tapes.heard(peer, hello)
        if hello.group and self._is_first(peer):
            self.place = StepPlace(hello.group, hello.member)

    def _is_first(self, name: str) -> bool:
        return name == self._manifest.parties[0]
