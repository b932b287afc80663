"""Channels to the compute parties that stay open between sessions, so that a session costs no TLS handshake.

Before each use every party answers one small call (one round trip, all parties at a time). gRPC reconnects a channel whose
connection ended; one that does not answer is replaced, with the reasons and the patience of
`parties.transport.connection.connect`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from parties.config.role_config import RoleConfig
from parties.identity.certificates import Identity
from parties.identity.trust import Peer, parties_of
from parties.transport.connection import PING, connect, key_of, known

ANSWER_SECONDS = 2.0


@dataclass(eq=False)
class _Kept:
    """One channel. users: sessions that run over it; retired: close it when the last one has ended."""

    channel: grpc.Channel
    users: int = 0
    retired: bool = False


class ChannelPool:
    """Open channels to all compute parties, shared by sessions of the same client that may run at the same time."""

    def __init__(self, config: RoleConfig, identity: Callable[[], Identity]) -> None:
        self.config = config
        self._identity = identity
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._closed = False

    @contextmanager
    def lend(
        self, waiting: Callable[[str], None] = lambda reason: None, check: Callable[[], None] = lambda: None
    ) -> Iterator[list[grpc.Channel]]:
        """Connected channels to all parties in order. check() may raise to give up waiting(reason).

        Raises `PeerLost` with the reason for the first party that cannot be reached, `PermissionRefused` for one whose key
        was revoked.
        """
        taken: list[_Kept] = []
        peers = parties_of(self.config)
        try:
            for peer in peers:
                taken.append(self._take(peer) or self._replacement(peer, waiting, check))
            pings = [
                kept.channel.unary_unary(PING).future(b"", wait_for_ready=False, timeout=ANSWER_SECONDS) for kept in taken
            ]
            for place, (peer, ping) in enumerate(zip(peers, pings, strict=True)):
                if not _answered(ping):
                    check()
                    fresh = self._replacement(peer, waiting, check)
                    self._give_back(taken[place])
                    taken[place] = fresh
            yield [kept.channel for kept in taken]
        finally:
            for kept in taken:
                self._give_back(kept)

    def close(self) -> None:
        """Close the channels, those in use when their sessions have ended."""
        with self._lock:
            self._closed = True
            for kept in self._kept.values():
                self._retire(kept)
            self._kept.clear()

    def _take(self, peer: Peer) -> _Kept | None:
        """The channel that is there, None without one, or where its key was revoked since."""
        identity = self._identity()
        known(identity, peer)
        with self._lock:
            kept = self._kept.get(peer.name)
            if kept is not None and key_of(kept.channel) in identity.revoked:
                return None
            if kept is not None:
                kept.users += 1
            return kept

    def _replacement(self, peer: Peer, waiting: Callable[[str], None], check: Callable[[], None]) -> _Kept:
        channel = connect(self._identity(), peer, self.config.connect_seconds, check, waiting)
        with self._lock:
            before = self._kept.get(peer.name)
            fresh = self._keep(peer, channel)
            if before is not None:
                self._retire(before)
            fresh.users += 1
            return fresh

    def _keep(self, peer: Peer, channel: grpc.Channel) -> _Kept:
        kept = _Kept(channel, retired=self._closed)
        if not self._closed:
            self._kept[peer.name] = kept
        return kept

    def _give_back(self, kept: _Kept) -> None:
        with self._lock:
            kept.users -= 1
            if kept.retired and not kept.users:
                kept.channel.close()

    def _retire(self, kept: _Kept) -> None:
        kept.retired = True
        if not kept.users:
            kept.channel.close()


def _answered(ping: grpc.Future) -> bool:
    """Whether the call got any answer, even a refusal."""
    error = ping.exception()
    return error is None or ping.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
