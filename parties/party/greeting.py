"""What the parties of a session tell each other before anything is shared, and agree on or end the session.

A greeting says which manifest the party was given, by which client, which storing of the model's shares it holds, and where
its tapes come from. So a session is one client's at all parties, and parts of a model that were stored together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc.errors import ManifestMismatch, WireError
from parties.tapes.agreement import check_source
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import Manifest, check_id, compare

if TYPE_CHECKING:
    from parties.party.session import PartySession


class Greetings:
    """The greetings of one session at one party."""

    def __init__(self, session: PartySession) -> None:
        self._session = session
        self._storings = {session.role: session.facts.nonce}

    def own(self) -> wire.PeerMessage:
        """What this party says."""
        session = self._session
        hello = wire.Hello(
            session=session.id,
            name=session.role,
            manifest=session.manifest.canonical(),
            client=session.ticket.client,
            storing=session.facts.nonce,
        )
        if session.tapes is not None:
            session.tapes.greet(hello)
        return wire.PeerMessage(hello=hello)

    def heard(self, peer: str, hello: wire.Hello) -> None:
        """What a peer says. Raises `ManifestMismatch` naming both sides where they differ, `WireError`."""
        session = self._session
        if hello.session != session.id or hello.name != peer:
            raise WireError(f"{peer} did not greet as itself in this session")
        compare(session.role, session.manifest, peer, Manifest.parse(hello.manifest, peer))
        check_client(session.id, session.role, session.ticket.client, peer, hello.client)
        self._storings[peer] = check_id(hello.storing, "storing", peer)
        check_source(session.role, session.tapes is not None, peer, hello)
        if session.tapes is not None:
            session.tapes.heard(peer, hello)

    def complete(self) -> None:
        """All have greeted. Raises `ManifestMismatch` when a party's shares are not those of the model's first session."""
        self._session.server.store.agree(self._session.facts, self._storings)


def check_client(session: str, first: str, mine: str, second: str, other: str) -> None:
    """Raise `ManifestMismatch`, naming both holders and both clients, unless the session is one client's at both."""
    if mine != other:
        raise ManifestMismatch(
            f"session {session} is of client '{mine[:64]}' at {first} and of client '{other[:64]}' at {second}: a session "
            "is one client's at all parties; open a new one"
        )
