"""A TCP relay on 127.0.0.1 that counts bytes in both directions, and can cut, hold, slow down or refuse the line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Forwards connections to `target`, and to further ones by ports of their own (`also`). forward, backward: bytes so far
    from the dialer and to it.

    open: cleared, nothing passes and nobody is told. slow: seconds that each piece of up to 64 KiB waits.
    """

    def __init__(self, target: str) -> None:
        self._targets: dict[int, tuple[str, int]] = {}  # by the port that stands for it
        self._listeners: list[socket.socket] = []
        self.forward = 0
        self.backward = 0
        self.slow = 0.0
        self.open = threading.Event()
        self.open.set()
        self._sockets: list[socket.socket] = []
        self.address = f"127.0.0.1:{self.also(target)}"

    def also(self, target: str) -> int:
        """Forward to a further target; the port that stands for it."""
        host, _, port = target.rpartition(":")
        listener = socket.create_server(("127.0.0.1", 0))
        own = int(listener.getsockname()[1])
        self._targets[own] = (host, int(port))
        self._listen(listener)
        return own

    def _listen(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return len(self._sockets) // 2

    def _accept(self, listener: socket.socket) -> None:
        target = self._targets[int(listener.getsockname()[1])]
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(target)
                except OSError:
                    near.close()
                    continue
                for s in (near, far):
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far, True, self.open), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, False, self.open), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forward: bool, open: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                open.wait()
                if self.slow:
                    time.sleep(self.slow)
                sink.sendall(data)
                if forward:
                    self.forward += len(data)
                else:
                    self.backward += len(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Drop all present connections without a word, as a router does that has lost its table; new ones work."""
        self.open.clear()
        self.open = threading.Event()
        self.open.set()

    def stop(self) -> None:
        """As if the relay's process were killed: connections end and nothing listens."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._listeners.clear()
        self.cut()

    def start(self) -> None:
        """Listen again, at the same ports."""
        for port in self._targets:
            self._listen(socket.create_server(("127.0.0.1", port)))

    def close(self) -> None:
        """Stop."""
        self.open.set()
        self.stop()
