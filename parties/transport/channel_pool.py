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
from parties.transport.connection import PING, begun, connect, key_of, known

ANSWER_SECONDS = 2.0


@dataclass(eq=False)
class _PooledChannel:
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
        self._pooled: dict[str, _PooledChannel] = {}
        self._closed = False

    @contextmanager
    def lend(
        self, waiting: Callable[[str], None] = lambda reason: None, check: Callable[[], None] = lambda: None
    ) -> Iterator[list[grpc.Channel]]:
        """Yield connected channels to all parties in order. check() may raise to give up waiting(reason).

        Raises `PeerLost` with the reason for the first party that cannot be reached, `PermissionRefused` for one whose key
        was revoked, `EnvironmentProblem` in a process forked from one that had connections.
        """
        begun()
        taken: list[_PooledChannel] = []
        peers = parties_of(self.config)
        try:
            for peer in peers:
                taken.append(self._take(peer) or self._replacement(peer, waiting, check))
            pings = [
                pooled.channel.unary_unary(PING).future(b"", wait_for_ready=False, timeout=ANSWER_SECONDS)
                for pooled in taken
            ]
            for place, (peer, ping) in enumerate(zip(peers, pings, strict=True)):
                if not _answered(ping):
                    check()
                    fresh = self._replacement(peer, waiting, check)
                    self._give_back(taken[place])
                    taken[place] = fresh
            yield [pooled.channel for pooled in taken]
        finally:
            for pooled in taken:
                self._give_back(pooled)

    def close(self) -> None:
        """Close the channels, those in use when their sessions have ended."""
        with self._lock:
            self._closed = True
            for pooled in self._pooled.values():
                self._retire(pooled)
            self._pooled.clear()

    def _take(self, peer: Peer) -> _PooledChannel | None:
        """Return the channel that is there, None without one, or where its key was revoked since."""
        identity = self._identity()
        known(identity, peer)
        with self._lock:
            pooled = self._pooled.get(peer.name)
            if pooled is not None and key_of(pooled.channel) in identity.revoked:
                return None
            if pooled is not None:
                pooled.users += 1
            return pooled

    def _replacement(self, peer: Peer, waiting: Callable[[str], None], check: Callable[[], None]) -> _PooledChannel:
        channel = connect(self._identity(), peer, self.config.connect_seconds, check, waiting)
        with self._lock:
            before = self._pooled.get(peer.name)
            fresh = self._keep(peer, channel)
            if before is not None:
                self._retire(before)
            fresh.users += 1
            return fresh

    def _keep(self, peer: Peer, channel: grpc.Channel) -> _PooledChannel:
        pooled = _PooledChannel(channel, retired=self._closed)
        if not self._closed:
            self._pooled[peer.name] = pooled
        return pooled

    def _give_back(self, pooled: _PooledChannel) -> None:
        with self._lock:
            pooled.users -= 1
            if pooled.retired and not pooled.users:
                pooled.channel.close()

    def _retire(self, pooled: _PooledChannel) -> None:
        pooled.retired = True
        if not pooled.users:
            pooled.channel.close()


def _answered(ping: grpc.Future) -> bool:
    """Whether the call got any answer, even a refusal."""
    error = ping.exception()
    return error is None or ping.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
