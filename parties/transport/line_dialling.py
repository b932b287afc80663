"""How a stream leaves gRPC for a line beside it: found, tried, and gone over to as after a lost connection.

The side that was dialled offers a line in the stream (`wire.LineOffer`, so inside gRPC's mutual TLS). The other one makes it
in a thread of its own, while the stream goes on: over the Unix socket where both run on one host, else over TCP to the same
host and the port that was offered. Only a line on which the peer has shown its certificate, with the name, role and key that
are expected, is gone over to: by the stream's own `Resume`, with what has arrived, the next epoch and the proof of its
secret (`parties.transport.resumption`), so that every message arrives in order and once. Where no line can be made the
stream stays where it is. Where one is lost the stream goes on over gRPC, and tries a line again, `LINES` times at most.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

from cryptography import x509

from mpc.errors import MpcacheError, PeerLost, PermissionRefused, WireError
from parties.config.role_config import split_address
from parties.events import clean, event, log
from parties.identity.certificates import MALFORMED, Identity
from parties.identity.trust import Peer, shown
from parties.transport.line import ACCEPTED, UNIX_NAME, Line, TlsLine, is_own_user, settings_of
from parties.transport.queues import Message
from parties.transport.records import LineCall
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import Call, Route
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import Refusal, public

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 2.0  # at most; meanwhile the stream stands still


def make_line(identity: Identity, peer: Peer, offer: wire.LineOffer) -> tuple[Line, str]:
    """Return a line to a peer, with the fingerprint of the key that it has shown. Raises `PeerLost` with the reason and the
    remedy where there is none to be had, `PermissionRefused` for somebody else."""
    with contextlib.suppress(OSError):
        return _begun(_near(offer.local), identity, peer, True)
    host, _ = split_address(peer.address)
    where = f"port {offer.port} of {host}"
    try:
        plain = socket.create_connection((host, offer.port), timeout=CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _begun(plain, identity, peer, False)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or "no answer").lower()
        raise PeerLost(
            peer.name,
            "connecting beside gRPC",
            f"{where} does not answer ({why}): let {identity.name} reach it (a fixed one: 'bulk_port' of {peer.name}), or "
            "set 'bulk: off'",
        ) from None


def _near(name: str) -> socket.socket:
    """Return a connection to a Unix socket of this host, whose process runs as the same user. Raises `OSError`."""
    if not name:
        raise ConnectionError("no Unix socket is offered")
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        plain.settimeout(CONNECT_SECONDS)
        plain.connect(UNIX_NAME.format(name[:64]))
        if not is_own_user(plain):
            raise ConnectionError("another user listens there")
    except BaseException:
        plain.close()
        raise
    return plain


def _begun(plain: socket.socket, identity: Identity, peer: Peer, near: bool) -> tuple[Line, str]:
    """Return the line that begins on a connection, once the peer has shown who it is and accepted this side, with the
    fingerprint of its key. Raises `OSError`, `PermissionRefused`."""
    line = TlsLine(plain, settings_of(identity, server=False), server=False)
    plain.settimeout(CONNECT_SECONDS)
    found = shown(_certificate(line.shake_hands(), peer))
    if found.name != peer.name:
        raise PermissionRefused(f"beside gRPC '{clean(found.name)[:64]}' answers at {peer.address}, not '{peer.name}'")
    peer.check(found, identity.revoked)
    if line.read(1) != ACCEPTED:
        raise ConnectionError("the peer does not accept the line")
    plain.settimeout(None)
    return (line.local() if near else line), found.fingerprint


def _certificate(data: bytes, peer: Peer) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(data)
    except MALFORMED:
        raise PermissionRefused(f"beside gRPC {peer.address} shows a certificate that cannot be read") from None


def with_lines(way: Route, identity: Callable[[], Identity], peer: Peer, parse: Callable[[bytes], Message]) -> Route:
    """Return a route whose streams go over to lines that `peer` offers. parse: of a message that comes."""

    def lead(stream: ResumableStream, offer: wire.LineOffer) -> None:
        try:
            line, key = make_line(identity(), peer, offer)
        except MpcacheError as error:
            stream.no_line = str(error)
            stream.notify()
            _tell(stream, error)
            return
        except Exception as problem:
            stream.fail(public(problem, stream.session.role))
            return
        move(stream, LineCall(line, peer.name, parse), key)

    return replace(way, line=lead)


_told: set[str] = set()


def _tell(stream: ResumableStream, error: MpcacheError) -> None:
    """Log why a stream stays with gRPC, once for each reason."""
    if str(error) not in _told:
        _told.add(str(error))
        level = logging.WARNING if isinstance(error, PermissionRefused) else logging.INFO
        event("stays_with_grpc", stream.session.role, level, peer=stream.peer, error=str(error))


def move(stream: ResumableStream, call: LineCall, key: str) -> None:
    """Go on with a stream in a call over a line, whose peer has shown `key`, and read it in this thread."""
    if not stream.begin_move():
        call.cancel()
        return
    outbox: SimpleQueue[Message | None] = SimpleQueue()
    epoch, message = stream.next_request()
    timer = threading.Timer(min(ANSWER_SECONDS, stream.window / 3), call.cancel)
    timer.daemon = True
    timer.start()
    try:
        call.send(message)
        answer = next(call)
        if answer.WhichOneof("content") != "resumed":
            raise WireError(f"{stream.peer} sent '{answer.WhichOneof('content')}' where 'resumed' was expected")
        moved = stream.connected(Call(epoch, outbox, call.cancel, call.line.way), answer.resumed.received, key)
    except (OSError, StopIteration, Refusal, MpcacheError) as problem:
        log.debug("no line to %s: %s", stream.peer, problem)
        call.cancel()
        stream.fail_to_move()
        return
    finally:
        timer.cancel()
    if not moved:
        call.cancel()
        return
    stream.log_call()
    arguments = (stream.drain(outbox), lambda: stream.call_over(epoch))
    threading.Thread(target=call.write, args=arguments, name=f"write {stream.peer}", daemon=True).start()
    stream.read(call, epoch)
