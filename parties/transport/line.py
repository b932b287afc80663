"""A line: a socket of its own between two parties beside gRPC, over mutual TLS 1.3 with the same certificates.

How a line begins, the same for both kinds: a TLS handshake in which both sides show their certificates, then one byte of the
side that was called, by which the other one knows that its own certificate was accepted. What follows is

* over TCP (`tls`): records in that TLS connection;
* over a Unix socket of one host (`local`): the same bytes without encryption. They never leave the kernel of a machine on
  which both processes run as one user, which each side has asked the kernel (`SO_PEERCRED`) before the handshake: whoever
  could read them, root or that user, can read both processes' memory as well.

A ring in memory that both processes map was measured beside the Unix socket and is not here: it took the same processor's
time for large messages, and more for small ones. A larger buffer of the socket took more for all.

OpenSSL's connections are not made for two threads at a time, so both directions take turns at the encryption (a lock), and
wait for the network outside of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from pathlib import Path
from typing import Any

from parties.identity.certificates import Identity
from parties.transport.resumption import Way

PROTOCOL = "mpcache-bulk"  # in the handshake: a line does not take another program's connection for its own
ACCEPTED = b"\1"
SMALL = 1 << 13  # bytes below which a header and what follows it are one record of TLS
STEP = 1 << 18  # bytes that are encrypted, or taken from the network, at a time
CREDENTIALS = struct.Struct("3i")  # process, user, group
UNIX_NAME = "\0mpcache-{}"  # without a file: it ends with the listener


class Line:
    """A connected line. One thread sends, another one reads, any may close. A context of whoever sends
    or reads."""

    way: Way

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self._open = threading.Lock()  # what follows
        self._users, self._closed = 0, False

    def __del__(self) -> None:
        self._socket.close()

    def __enter__(self) -> None:
        """Use the socket: its file stays open meanwhile. Raises `OSError` when the line is closed."""
        with self._open:
            if self._closed:
                raise ConnectionError("the line was closed")
            self._users += 1

    def __exit__(self, *exc: object) -> None:
        with self._open:
            self._users -= 1
            if self._closed and not self._users:
                self._socket.close()

    def send(self, header: bytes, content: bytes | memoryview) -> None:
        """Send a header and what follows it. Waits while the peer does not read; raises `OSError` when the line is lost."""
        raise NotImplementedError

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises `OSError` at the end of the line, whoever has closed it."""
        raise NotImplementedError

    def close(self) -> None:
        """End the line at once, in both directions; whoever waits at it is woken. The file is closed with the last use."""
        with self._open:
            self._closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if not self._users:
                self._socket.close()


class LocalLine(Line):
    """A line within one host, without encryption."""

    way = "local"

    def send(self, header: bytes, content: bytes | memoryview) -> None:
        """As in `Line`."""
        sent, size = self._socket.sendmsg([header, content]), len(header)
        if sent < size + len(content):
            view = memoryview(content)
            while sent < size:
                sent += self._socket.sendmsg([header[sent:], view])
            self._socket.sendall(view[sent - size :])

    def read(self, size: int) -> bytes:
        """As in `Line`."""
        found = self._socket.recv(size, socket.MSG_WAITALL)
        while len(found) < size:
            more = self._socket.recv(size - len(found), socket.MSG_WAITALL)
            if not more:
                raise ConnectionError("the line ended")
            found += more
        return found


class TlsLine(Line):
    """A line over TLS."""

    way = "tls"

    def __init__(self, plain: socket.socket, settings: ssl.SSLContext, server: bool) -> None:
        super().__init__(plain)
        self._lock = threading.Lock()
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = settings.wrap_bio(self._came, self._goes, server_side=server)
        self._buffer = bytearray(STEP)
        self._view = memoryview(self._buffer)

    def shake_hands(self) -> bytes:
        """Complete the handshake and return the peer's certificate (DER). Raises `OSError`."""
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:  # of a handshake that failed, too: it says why
                if outgoing := self._goes.read():
                    self._socket.sendall(outgoing)
            if not done:
                self._take()
        if self._tls.selected_alpn_protocol() != PROTOCOL:
            raise ConnectionError("the peer speaks another protocol")
        return self._tls.getpeercert(binary_form=True) or b""

    def send(self, header: bytes, content: bytes | memoryview) -> None:
        """As in `Line`."""
        if len(content) < SMALL:
            self._encrypt(header + bytes(content))
            return
        view = memoryview(content)
        self._encrypt(header)
        for start in range(0, len(view), STEP):
            self._encrypt(view[start : start + STEP])

    def _encrypt(self, content: bytes | memoryview) -> None:
        with self._lock:
            self._tls.write(content)  # into memory: whole
            outgoing = self._goes.read()
        self._socket.sendall(outgoing)

    def read(self, size: int) -> bytes:
        """As in `Line`."""
        found = bytearray(size)
        view, got = memoryview(found), 0
        while True:
            with self._lock:
                try:
                    while got < size:
                        taken: Any = self._tls.read(size - got, view[got:])
                        if not taken:
                            raise ConnectionError("the line ended")
                        got += taken
                    return bytes(found)
                except ssl.SSLWantReadError:
                    pass
            self._take()

    def _take(self) -> None:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionError("the line ended")
        with self._lock:
            self._came.write(self._view[:count])

    def local(self) -> LocalLine:
        """Return the same socket without encryption, once the other side has nothing more to say under it."""
        if self._came.pending:
            raise ConnectionError("the peer goes on under encryption")
        return LocalLine(self._socket.dup())


def settings_of(identity: Identity, server: bool) -> ssl.SSLContext:
    """Return settings for the TLS of a line: version 1.3, certificates of the deployment's authority on both sides. Whose
    they are the caller checks."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    settings.minimum_version = ssl.TLSVersion.TLSv1_3
    settings.check_hostname = False
    settings.verify_mode = ssl.CERT_REQUIRED
    settings.load_verify_locations(cadata=identity.authority.decode())
    settings.load_cert_chain(identity.certificate_file, identity.key_file)
    settings.set_alpn_protocols([PROTOCOL])
    if server:
        settings.num_tickets = 0
    return settings


def is_own_user(plain: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as the same user, as the kernel says. A user that this
    namespace does not know is nobody's."""
    user: int = CREDENTIALS.unpack(plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[1]
    return user == os.geteuid() and user != _unknown_user()


def _unknown_user() -> int:
    """Return the number that the kernel shows for users of other namespaces."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534
