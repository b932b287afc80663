"""Where peers reach a server beside gRPC (`parties.transport.line`): a TCP port and a Unix socket of its own.

A line goes on with a stream that gRPC has opened, and does nothing else: its first message must be a `Resume`, which takes
the certificate of the stream's peer, and the stream's secret, which gRPC's mutual TLS has carried
(`parties.transport.resumption`). Who may, and what is refused, is decided where calls of gRPC are served too:
`parties.server.incoming`.

What a stranger can take: `HANDSHAKES` connections at a time, each for `first_message_seconds`; further ones are closed at
once. Streams stay with gRPC then.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any, NoReturn

from mpc.errors import EnvironmentProblem, WireError
from parties.config.role_config import RoleConfig, split_address
from parties.identity.certificates import Identity
from parties.server.calls import Calls
from parties.server.incoming import IncomingCalls, StreamCall
from parties.server.permissions import Permissions
from parties.transport.line import ACCEPTED, UNIX_NAME, Line, TlsLine, is_own_user, settings_of
from parties.transport.peer_stream import PeerStream
from parties.transport.queues import Message
from parties.transport.records import LineCall
from parties.transport.resumable_stream import ResumableStream
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import Refusal

HANDSHAKES = 32
BACKLOG = 64
ACCEPT_PAUSE = 0.2
LINGER_SECONDS = 2.0  # in which a peer may end its direction after this side's


class _Ended(Exception):
    """A call is over; the peer was told why."""


class _Context:
    """A call over a line, as `IncomingCalls` knows one of gRPC."""

    def __init__(self, call: LineCall, certificate: bytes) -> None:
        self.way = call.line.way
        self.cancel = call.cancel
        self._call = call
        self._pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
        self._callbacks: list[Callable[[], None]] = []
        self._over = False
        self._lock = threading.Lock()
        self._failure = b""

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return the caller's certificate, whose handshake has proved the key."""
        return {"x509_pem_cert": [self._pem]}

    def is_active(self) -> bool:
        """Whether the caller can be told something."""
        return not self._over

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back at the end of the call; False when that was already."""
        with self._lock:
            if not self._over:
                self._callbacks.append(callback)
            return not self._over

    def set_trailing_metadata(self, metadata: tuple[tuple[str, bytes], ...]) -> None:
        """Take what `abort` says."""
        self._failure = metadata[0][1]

    def abort(self, code: object, details: str) -> NoReturn:
        """Tell the peer why the call ends."""
        with contextlib.suppress(OSError):
            self._call.refuse(self._failure)
        raise _Ended

    def end(self) -> None:
        """Note that the call is over."""
        with self._lock:
            self._over = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Lines:
    """The listener of one server, for the streams that move most: between parties, and from the dealer. identity(): the
    server's own of the moment."""

    def __init__(
        self,
        config: RoleConfig,
        identity: Callable[[], Identity],
        incoming: IncomingCalls,
        permissions: Permissions,
        calls: Calls,
    ) -> None:
        self._config = config
        self._identity = identity
        self._incoming, self._calls = incoming, calls
        party = config.role == "party"
        self._kind: Any = wire.PeerMessage if party else wire.TapeMessage
        self._parse = (wire.PeerMessage if party else wire.TapeRequest).FromString
        authorise = permissions.may_exchange if party else permissions.may_have_tape
        self._call = StreamCall(self._kind(heartbeat=wire.Heartbeat()), authorise, _only_resumed)
        self._places = threading.BoundedSemaphore(HANDSHAKES)
        self._listeners: list[socket.socket] = []
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        self._settings: tuple[Identity, ssl.SSLContext] | None = None
        self._stopped = threading.Event()
        self.local = secrets.token_hex(16)  # name of the Unix socket
        self.port = 0

    def start(self) -> None:
        """Listen. Raises `EnvironmentProblem` naming the port when it cannot be had."""
        assert self._config.listen is not None
        host, _ = split_address(self._config.listen, listening=True)
        port = self._config.bulk_port
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot listen at port {port} of {host} ({(error.strerror or 'refused').lower()}): choose another "
                "'bulk_port', or leave it out for any that is free"
            ) from None
        self.port = int(listener.getsockname()[1])
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        near.bind(UNIX_NAME.format(self.local))
        near.listen(BACKLOG)
        self._listeners = [listener, near]
        self._incoming.offer = self._offer
        for one in self._listeners:
            threading.Thread(target=self._accept, args=(one,), name="lines", daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and end all lines."""
        self._stopped.set()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """End all lines that are open now."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.close()

    def _offer(self, stream: PeerStream) -> None:
        """Tell a peer that gRPC has let in how it reaches this listener, if its stream can go on there."""
        if isinstance(stream, ResumableStream) and stream.kind is self._kind:
            stream.send(self._kind(offer=wire.LineOffer(port=self.port, local=self.local)))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:  # closed, or this process has too many files open for the moment
                if self._stopped.wait(ACCEPT_PAUSE):
                    return
                continue
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._begin, args=(plain,), name="line", daemon=True).start()
            else:
                plain.close()

    def _begin(self, plain: socket.socket) -> None:
        """Find out who is there and what is wanted, in bounded time; then serve."""
        timer = threading.Timer(self._config.first_message_seconds, lambda: _shut(plain))
        timer.daemon = True
        timer.start()
        try:
            line, certificate = self._known(plain)
            call = LineCall(line, "a caller", self._parse)
            first = next(call)
        except (OSError, StopIteration, Refusal, WireError):  # who gives up before it has asked for anything is no news
            plain.close()
            return
        finally:
            timer.cancel()
            self._places.release()
        self._serve(call, certificate, first)

    def _known(self, plain: socket.socket) -> tuple[Line, bytes]:
        """Return the line that begins on a connection, with the caller's certificate (DER). Raises `OSError`."""
        near = plain.family == socket.AF_UNIX
        if near and not is_own_user(plain):
            raise ConnectionError("another user")
        if not near:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = TlsLine(plain, self._tls(), server=True)
        certificate = line.shake_hands()
        line.send(ACCEPTED, b"")
        return (line.local() if near else line), certificate

    def _tls(self) -> ssl.SSLContext:
        identity = self._identity()
        if self._settings is None or self._settings[0] is not identity:
            self._settings = identity, settings_of(identity, server=True)
        return self._settings[1]

    def _serve(self, call: LineCall, certificate: bytes, first: Message) -> None:
        line, context = call.line, _Context(call, certificate)
        with self._lock:
            self._lines.add(line)
        try:
            with ExitStack() as counted:
                enter = lambda name: counted.enter_context(self._calls.held(name))  # noqa: E731
                call.peer = self._incoming.admit(context, self._call.authorise, enter)
                for message in self._incoming.serve(chain([first], call), context, self._call):
                    call.send(message)
                call.end()
            call.wait_until_over(LINGER_SECONDS)
        except (_Ended, OSError):
            pass
        finally:
            context.end()
            line.close()
            with self._lock:
                self._lines.discard(line)


def _shut(plain: socket.socket) -> None:
    with contextlib.suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)


def _only_resumed(stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
    raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' beside gRPC, where a stream is only resumed")
