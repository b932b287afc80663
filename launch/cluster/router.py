"""One address before several gateways: each connection goes to the replica with the fewest open ones, byte for byte.

A connection that a replica does not take goes to another one; one that breaks later breaks for its client, since nobody can
know what the replica had done. Without any replica a client gets HTTP status 503 at once.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

CONNECT_SECONDS = 5.0
PIECE = 1 << 16
NOBODY = b'{"error": {"message": "no replica serves now: ask again soon", "type": "server_error", "code": "no_replica"}}'
RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(NOBODY), NOBODY)
)


class Router:
    """Routes what comes to a listening socket, in a thread of its own, from `start` to `stop`."""

    def __init__(self, listener: socket.socket) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)

    def start(self) -> None:
        """Begin to take connections."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, and drop those that there are."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()

    def add(self, address: str) -> None:
        """Let a replica serve. address: "host:port"."""
        with self._lock:
            self._open.setdefault(address, 0)

    def remove(self, address: str) -> None:
        """Send nothing more to a replica."""
        with self._lock:
            self._open.pop(address, None)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _taken(self, but: set[str]) -> str | None:
        """Return the replica that is least busy, now with one connection more."""
        with self._lock:
            free = {address: count for address, count in self._open.items() if address not in but}
            if not free:
                return None
            address = min(free, key=lambda one: free[one])
            self._open[address] += 1
            return address

    def _released(self, address: str) -> None:
        with self._lock:
            if address in self._open:
                self._open[address] -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried: set[str] = set()
        try:
            while (address := self._taken(tried)) is not None:
                tried.add(address)
                try:
                    if await self._pass_on(address, reader, writer):
                        return
                finally:
                    self._released(address)
            await asyncio.wait_for(reader.read(PIECE), CONNECT_SECONDS)  # who is still sending would not read an answer
            writer.write(RESPONSE)
            await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _pass_on(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Connect a client with a replica until one of them is done. False if the replica did not take it."""
        host, _, port = address.rpartition(":")
        try:
            there = await asyncio.wait_for(asyncio.open_connection(host, int(port)), CONNECT_SECONDS)
        except (OSError, TimeoutError):
            return False
        ways = [asyncio.ensure_future(_copy(reader, there[1])), asyncio.ensure_future(_copy(there[0], writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            there[1].close()
        return True


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
