"""A TCP relay on 127.0.0.1 that counts bytes in both directions, and can cut, hold, slow down or refuse the line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Forwards connections to `target`. forward, backward: bytes so far from the dialer and to it.

    open: cleared, nothing passes and nobody is told. slow: seconds that each piece of up to 64 KiB waits.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = int(self._listener.getsockname()[1])
        self.address = f"127.0.0.1:{self._port}"
        self.forward = 0
        self.backward = 0
        self.slow = 0.0
        self.open = threading.Event()
        self.open.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return len(self._sockets) // 2

    def _accept(self) -> None:
        listener = self._listener
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(self._target)
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
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def start(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self.open.set()
        self.stop()
