"""Free ports of this machine, for servers that start a moment later."""

from __future__ import annotations

import collections
import contextlib
import secrets
import socket
from pathlib import Path

FIRST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # first and last port that outgoing connections get
USUAL_RANGE = "49152 65535"  # RFC 6335, where the file is missing
ENOUGH = 1_000  # ports to choose from
CLAIMS = 128  # that a process holds at once

_claims: collections.deque[socket.socket] = collections.deque()


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that nothing is bound to now.

    They lie below the ports that the system gives to outgoing connections, and are drawn at random: what another
    program opens in the meantime does not get one of them. Where the system leaves no such ports it chooses itself.
    This process keeps the UDP port of the same number, until it ends or has asked for `CLAIMS` more, so that no other
    process that asks here is given a port whose server has not started yet.
    """
    end = int((RANGE.read_text(encoding="ascii") if RANGE.exists() else USUAL_RANGE).split()[0])
    free = range(FIRST, end) if end >= FIRST + ENOUGH else None
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            claim = socket.socket(type=socket.SOCK_DGRAM)
            try:
                one.bind(("127.0.0.1", secrets.choice(free) if free else 0))
                claim.bind(one.getsockname())
            except OSError:
                claim.close()
                continue
            _claims.append(claim)
            found.append(int(one.getsockname()[1]))
    while len(_claims) > max(CLAIMS, count):
        _claims.popleft().close()
    return found
