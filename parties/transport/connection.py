"""gRPC over mutual TLS: servers that know who calls, dialers that know whom they reached, and why not when they did not.

gRPC does not show a caller the server's certificate. So who dials looks first: a TLS handshake of its own, in which nothing
is said (`look`), gives the peer's certificate, whose name, role and key are compared with `parties.identity.trust.Peer`. The
channel's only trusted root is then that certificate itself: a handshake of gRPC ends well only with this certificate, which
takes its private key. What was looked at is remembered: one look serves until the peer has a new certificate.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mpc.errors import EnvironmentProblem, MpcacheError, PeerLost, PermissionRefused
from parties.config.role_config import split_address
from parties.events import clean
from parties.identity.certificate_watcher import CertificateWatcher
from parties.identity.certificates import MALFORMED, Identity
from parties.identity.trust import Peer, shown
from parties.transport.resumption import Route
from parties.wire.error_codec import abort
from parties.wire.shares import MESSAGE_BYTES

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16384),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),  # pings that a busy process finds all at once are no abuse
    ("grpc.optimization_target", "latency"),
]
PING = "/mpcache.ComputeParty/Describe"
CLIENT_OPTIONS: list[tuple[str, int | str]] = [
    *OPTIONS,
    ("grpc.enable_http_proxy", 0),  # http_proxy is for the web; peers are at addresses of their own
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take: handshakes are slow from afar
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


LOOK_PAUSE = 0.2  # between looks at a peer that is not there
_COMPARE = "compare what `mpcache certs fingerprint` prints on the host of {name} with the fingerprint in the file here"
_REMEDY = "it must be valid now and signed by the same authority"
_REMEDIES = {  # by OpenSSL's number of what is wrong with a certificate
    9: "set the clocks of both hosts",
    10: "renew it at {name} with `mpcache certs renew`, if the clocks are right",
}


_began: list[int] = []  # the process that gRPC's threads run in, once there are any


def begun() -> None:
    """Begin to use gRPC, before what starts its threads. Raises `EnvironmentProblem` in a process that was forked from one
    that had begun: these threads are not there, and whatever waits for them would wait for ever."""
    if not _began:
        _began.append(os.getpid())
    elif _began[0] != os.getpid():
        raise EnvironmentProblem(
            f"this process was forked from process {_began[0]}, which had connections already, and can have none: fork "
            "before the first connection, or start processes with multiprocessing's 'spawn' or 'forkserver'"
        )


def _server_credentials(identity: Identity | CertificateWatcher) -> grpc.ServerCredentials:
    """Return credentials that greet every new connection with the identity of the moment; standing ones are left alone."""
    if isinstance(identity, Identity):
        return grpc.ssl_server_credentials([(identity.key, identity.certificate)], identity.authority, True)
    greeted = identity.current

    def configuration(now: Identity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], now.authority)

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal greeted
        now = identity.current
        if now is greeted:
            return None
        greeted = now
        return configuration(now)

    return grpc.dynamic_ssl_server_credentials(configuration(greeted), newest, require_client_authentication=True)


def start_server(
    identity: Identity | CertificateWatcher,
    listen: str,
    add: Callable[[grpc.Server], None],
    calls: int,
    waiting: int = 0,
    guard: grpc.ServerInterceptor | None = None,
) -> tuple[grpc.Server, ThreadPoolExecutor, int]:
    """Return a running server that requires certificates of the deployment's authority; with its threads and its port.

    calls: how many calls may run at a time. waiting: how many further ones wait for a thread, in which guard may refuse
    them; gRPC refuses what is beyond, and lets callers wait with more than `calls` in one connection. Raises
    `EnvironmentProblem` naming the port when it cannot be had.
    """
    begun()
    check_free(listen, "listen")
    threads = ThreadPoolExecutor(calls, thread_name_prefix="call")
    options = [*OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", calls)]
    server = grpc.server(
        threads, interceptors=[guard] if guard else [], options=options, maximum_concurrent_rpcs=calls + waiting
    )
    add(server)
    try:
        port = server.add_secure_port(listen, _server_credentials(identity))
    except RuntimeError:
        port = 0
    if not port:
        threads.shutdown(wait=False)
        raise EnvironmentProblem(f"cannot listen at {listen}: choose another address in 'listen'")
    server.start()
    return server, threads, port


def check_free(listen: str, key: str) -> None:
    """Raise `EnvironmentProblem`, naming the key of a configuration that says host:port, where nothing can listen there."""
    host, port = split_address(listen, listening=True)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise EnvironmentProblem(f"cannot listen at {listen}: {error.strerror}; correct the host in '{key}'") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot listen at {listen}: {(error.strerror or 'refused').lower()}; stop the program that uses port "
                f"{port} (`ss -ltnp` shows it) or choose another port in '{key}'"
            ) from None


_looked_at: dict[tuple[Peer, bytes], x509.Certificate] = {}  # the newest by peer and authority, of which each was checked


def known(identity: Identity, peer: Peer) -> x509.Certificate | None:
    """Return the peer's certificate, if one was looked at. Raises `PermissionRefused` when its key was revoked since."""
    found = _looked_at.get((peer, identity.authority))
    if found is not None:
        peer.check(shown(found), identity.revoked)
    return found


_keys: weakref.WeakKeyDictionary[grpc.Channel, str] = weakref.WeakKeyDictionary()


def key_of(channel: grpc.Channel) -> str:
    """Return the fingerprint of the key that a channel is made with, whatever key the peer has shown since."""
    return _keys.get(channel, "")


def open_channel(identity: Identity, peer: Peer) -> grpc.Channel:
    """Return a channel on which only `peer`, with the certificate that it has shown, can answer.

    Nothing is waited for but, where that certificate is not known yet, a look at it. Raises `PeerLost` when there is none to
    be had, `PermissionRefused` when its key was revoked, `EnvironmentProblem` as `begun`.
    """
    begun()
    found = known(identity, peer) or look(identity, peer)
    if isinstance(found, Unreachable):
        raise PeerLost(peer.name, "connecting", str(found))
    root = found.public_bytes(serialization.Encoding.PEM)
    credentials = grpc.ssl_channel_credentials(root, identity.key, identity.certificate)
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", peer.name)]
    channel = grpc.secure_channel(peer.address, credentials, options=options)
    _keys[channel] = shown(found).fingerprint
    return channel


def connect(
    identity: Identity,
    peer: Peer,
    seconds: float,
    check: Callable[[], None] = lambda: None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> grpc.Channel:
    """Return a connected channel to `peer`, waiting up to `seconds` for it to come up.

    check() may raise to give up; waiting(reason) is told why it takes longer. Raises `PeerLost` with the reason and the
    remedy: at once for a refused or wrong certificate, after `seconds` when nothing answers; `PermissionRefused` for a
    revoked key.
    """
    limit = time.monotonic() + seconds
    channel: grpc.Channel | None = None
    made_for: x509.Certificate | None = None
    try:
        while True:
            certificate = known(identity, peer)
            if certificate is not None and certificate != made_for:
                if channel is not None:
                    channel.close()
                channel, made_for = open_channel(identity, peer), certificate
            if channel is not None and _answers(channel, max(0.05, min(0.5, limit - time.monotonic()))):
                return channel
            check()
            found = look(identity, peer)
            if isinstance(found, x509.Certificate):
                if found != made_for and time.monotonic() < limit:
                    continue
                found = _no_channel(peer)
            if found.final or time.monotonic() >= limit:
                raise PeerLost(peer.name, "connecting", f"{found}{'' if found.final else f' (waited {seconds:g} s)'}")
            waiting(f"{peer.name}: {found}")
            if channel is None:
                time.sleep(max(0.0, min(LOOK_PAUSE, limit - time.monotonic())))
    except BaseException:
        if channel is not None:
            channel.close()
        raise


def _answers(channel: grpc.Channel, seconds: float) -> bool:
    """Whether a call gets any answer, even a refusal. (gRPC's own readiness future costs 0.2 s when it is dropped.)"""
    try:
        channel.unary_unary(PING)(b"", wait_for_ready=True, timeout=seconds)
    except grpc.RpcError as error:
        return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    return True


def route(
    identity: Callable[[], Identity], peer: Peer, call: Callable[[grpc.Channel], Callable[[Iterator[Any]], Any]]
) -> Route:
    """Return how a stream to `peer` is dialled, and dialled again with the identity that is current then."""
    return Route(
        peer.name,
        lambda: open_channel(identity(), peer),
        call,
        lambda: str(probe(identity(), peer)),
        key_of,
    )


class Unreachable(NamedTuple):
    """Why a peer cannot be reached. remedy: what to do; final: waiting is useless."""

    reason: str
    remedy: str
    final: bool

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def probe(identity: Identity, peer: Peer) -> Unreachable:
    """Return why `peer` cannot be reached."""
    found = look(identity, peer)
    if isinstance(found, Unreachable):
        return found
    return _no_channel(peer)


def _no_channel(peer: Peer) -> Unreachable:
    return Unreachable(f"{peer.address} answers, but no channel could be made yet", "try again", False)


def look(identity: Identity, peer: Peer) -> x509.Certificate | Unreachable:
    """Return the certificate that `peer` shows, checked and remembered; or why there is none. Takes 3 s at most."""
    host, port = split_address(peer.address)
    try:
        plain = socket.create_connection((host, port), timeout=2)
    except socket.gaierror:
        return Unreachable(f"host '{host}' has no address", "correct it in the configuration", False)
    except ConnectionRefusedError:
        return Unreachable(f"nothing listens at {peer.address}", f"start {peer.name}, or correct its address", False)
    except OSError as error:
        problem = (error.strerror or "no answer within 2 s").lower()
        return Unreachable(f"{peer.address} does not answer ({problem})", "check address, network and firewall", False)
    with plain:
        try:
            found = _handshake(identity, plain, peer)
        except OSError as error:
            return _explain(identity, peer, error)
    if isinstance(found, x509.Certificate):
        _looked_at[peer, identity.authority] = found
    return found


def _tls_settings(identity: Identity) -> ssl.SSLContext:
    """Return settings for a handshake outside gRPC, which tells more of what is wrong. The caller checks the names."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname = False
    settings.load_verify_locations(cadata=identity.authority.decode())
    settings.load_cert_chain(identity.certificate_file, identity.key_file)
    settings.set_alpn_protocols(["h2"])
    return settings


def _handshake(identity: Identity, plain: socket.socket, peer: Peer) -> x509.Certificate | Unreachable:
    with _tls_settings(identity).wrap_socket(plain, server_hostname=peer.name) as tls:
        try:
            certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            found = shown(certificate)
        except MALFORMED:
            return Unreachable(f"{peer.address} shows a certificate that cannot be read", f"is it {peer.name}?", True)
        if found.name != peer.name:
            name = clean(found.name) or "nobody"
            reason = f"{peer.address} is '{name[:64]}', not '{peer.name}'"
            return Unreachable(reason, "correct address or name in the configuration", True)
        try:
            peer.check(found, identity.revoked)
        except PermissionRefused as error:
            return Unreachable(str(error), _COMPARE.format(name=peer.name), True)
        tls.settimeout(1)
        if not tls.recv(1):  # a gRPC server speaks first, unless it refused the certificate
            return Unreachable(_refusal(identity, peer), _REMEDY, True)
    return certificate


def _refusal(identity: Identity, peer: Peer) -> str:
    return f"{peer.address} refuses the certificate {identity.certificate_file}"


def _explain(identity: Identity, peer: Peer, error: OSError) -> Unreachable:
    """Return what an exception of a handshake means."""
    address, name = peer.address, peer.name
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"the certificate of {address} is refused: {clean(error.verify_message)}",
            _REMEDIES.get(error.verify_code, "it must be valid now and signed by {authority}").format(
                name=name, authority=identity.authority_file
            ),
            True,
        )
    if isinstance(error, ssl.SSLError):
        if "alert" in (error.reason or "").lower():
            reason = (error.reason or "").lower().replace("_", " ")
            return Unreachable(f"{_refusal(identity, peer)} ({clean(reason)})", _REMEDY, True)
        wrong = f"{address} does not speak TLS as expected ({clean(error.reason or 'no reason')})"
        return Unreachable(wrong, f"is it {name}?", True)
    if isinstance(error, TimeoutError):
        return Unreachable(f"{address} accepts connections but does not answer", f"is it {name}, and is it alive?", False)
    how = (error.strerror or "no reason").lower()
    return Unreachable(f"{address} ended the connection ({how})", f"see the log of {name}", False)


def abort_if_alive(context: Any, error: MpcacheError) -> None:
    """End a call on the server's side with a typed status, unless the caller is gone."""
    if context.is_active():
        abort(context, error)
