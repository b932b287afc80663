"""gRPC over mutual TLS: servers that know who calls, dialers that know whom they reached, and why not when they did not."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc

from mpc.errors import EnvironmentProblem, MpcacheError, PeerLost, PermissionRefused
from parties.certificates import Identity
from parties.config import split_address
from parties.failures import abort, clean
from parties.live_identity import LiveIdentity
from parties.resume import Route

CHUNK_BYTES = 1 << 20
MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)
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
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take: handshakes are slow from afar
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


_REMEDY = "it must be valid now and signed by the same authority"
_REMEDIES = {  # by OpenSSL's number of what is wrong with a certificate
    9: "set the clocks of both hosts",
    10: "renew it at {name} with `mpcache certs renew`, if the clocks are right",
}


def _server_credentials(identity: Identity | LiveIdentity) -> grpc.ServerCredentials:
    """Every new connection is greeted with the identity of the moment; connections that stand are left alone."""
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
    identity: Identity | LiveIdentity,
    listen: str,
    add: Callable[[grpc.Server], None],
    calls: int,
    waiting: int = 0,
    guard: grpc.ServerInterceptor | None = None,
) -> tuple[grpc.Server, ThreadPoolExecutor, int]:
    """A running server that requires certificates of the deployment's authority; with its threads and its port.

    calls: how many calls may run at a time. waiting: how many further ones wait for a thread, in which guard may refuse
    them; gRPC refuses what is beyond, and lets callers wait with more than `calls` in one connection. Raises
    `EnvironmentProblem` naming the port when it cannot be had.
    """
    _check_free(listen)
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


def _check_free(listen: str) -> None:
    host, port = split_address(listen, listening=True)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise EnvironmentProblem(f"cannot listen at {listen}: {error.strerror}; correct the host in 'listen'") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot listen at {listen}: {(error.strerror or 'refused').lower()}; stop the program that uses port "
                f"{port} (`ss -ltnp` shows it) or choose another port in 'listen'"
            ) from None


def caller(context: Any) -> str:
    """The name of who calls, from its verified certificate. Raises `PermissionRefused` without one."""
    names = context.auth_context().get("x509_common_name", [])
    if len(names) != 1:
        raise PermissionRefused("the caller has no identity: its certificate needs exactly one common name")
    return str(names[0].decode("utf-8", "replace"))


def open_channel(identity: Identity, address: str, name: str) -> grpc.Channel:
    """A channel to `name` at `address`; the other end must prove that it is `name`. Nothing is waited for."""
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", name)]
    return grpc.secure_channel(address, credentials, options=options)


def connect(
    identity: Identity,
    address: str,
    name: str,
    seconds: float,
    check: Callable[[], None] = lambda: None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> grpc.Channel:
    """A connected channel to `name`, waiting up to `seconds` for it to come up.

    check() may raise to give up; waiting(reason) is told why it takes longer. Raises `PeerLost` with the reason and the
    remedy: at once for a refused or wrong certificate, after `seconds` when nothing answers.
    """
    channel = open_channel(identity, address, name)
    limit = time.monotonic() + seconds
    try:
        while not _answers(channel, max(0.05, min(0.5, limit - time.monotonic()))):
            check()
            found = probe(identity, address, name)
            if found.final or time.monotonic() >= limit:
                late = "" if found.final else f" (waited {seconds:g} s)"
                raise PeerLost(name, "connecting", f"{found}{late}")
            waiting(f"{name}: {found}")
    except BaseException:
        channel.close()
        raise
    return channel


def _answers(channel: grpc.Channel, seconds: float) -> bool:
    """Whether a call gets any answer, even a refusal. (gRPC's own readiness future costs 0.2 s when it is dropped.)"""
    try:
        channel.unary_unary(PING)(b"", wait_for_ready=True, timeout=seconds)
    except grpc.RpcError as error:
        return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    return True


def route(
    identity: Callable[[], Identity], address: str, name: str, call: Callable[[grpc.Channel], Callable[[Iterator[Any]], Any]]
) -> Route:
    """How a stream to `name` is dialled, and dialled again with the identity that is current then."""
    return Route(lambda: open_channel(identity(), address, name), call, lambda: str(probe(identity(), address, name)))


class Unreachable(NamedTuple):
    """Why a peer cannot be reached. remedy: what to do; final: waiting is useless."""

    reason: str
    remedy: str
    final: bool

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def probe(identity: Identity, address: str, name: str) -> Unreachable:
    """Why `name` cannot be reached at `address`."""
    host, port = split_address(address)
    try:
        plain = socket.create_connection((host, port), timeout=2)
    except socket.gaierror:
        return Unreachable(f"host '{host}' has no address", "correct it in the configuration", False)
    except ConnectionRefusedError:
        return Unreachable(f"nothing listens at {address}", f"start {name}, or correct its address", False)
    except OSError as error:
        problem = (error.strerror or "no answer within 2 s").lower()
        return Unreachable(f"{address} does not answer ({problem})", "check address, network and firewall", False)
    with plain:
        return _probe_tls(identity, plain, address, name)


def tls_settings(identity: Identity) -> ssl.SSLContext:
    """For a handshake outside gRPC, which tells more about what is wrong. Names are left to the caller to check."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname = False
    settings.load_verify_locations(cadata=identity.authority.decode())
    settings.load_cert_chain(identity.certificate_file, identity.key_file)
    settings.set_alpn_protocols(["h2"])
    return settings


def _probe_tls(identity: Identity, plain: socket.socket, address: str, name: str) -> Unreachable:
    refusal = f"{address} refuses the certificate {identity.certificate_file}"
    try:
        with tls_settings(identity).wrap_socket(plain, server_hostname=name) as tls:
            certificate: dict[str, Any] = dict(tls.getpeercert() or {})
            names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
            if name not in names:
                found = clean(str(names[0])) if names else "nobody"
                return Unreachable(
                    f"{address} is '{found}', not '{name}'", "correct address or name in the configuration", True
                )
            tls.settimeout(1)
            if not tls.recv(1):  # a gRPC server speaks first, unless it refused the certificate
                return Unreachable(refusal, _REMEDY, True)
    except ssl.SSLCertVerificationError as error:
        return Unreachable(
            f"the certificate of {address} is refused: {clean(error.verify_message)}",
            _REMEDIES.get(error.verify_code, "it must be valid now and signed by {authority}").format(
                name=name, authority=identity.authority_file
            ),
            True,
        )
    except ssl.SSLError as error:
        if "alert" in (error.reason or "").lower():
            reason = (error.reason or "").lower().replace("_", " ")
            return Unreachable(f"{refusal} ({clean(reason)})", _REMEDY, True)
        wrong = f"{address} does not speak TLS as expected ({clean(error.reason or 'no reason')})"
        return Unreachable(wrong, f"is it {name}?", True)
    except TimeoutError:
        return Unreachable(f"{address} accepts connections but does not answer", f"is it {name}, and is it alive?", False)
    except OSError as error:
        how = (error.strerror or "no reason").lower()
        return Unreachable(f"{address} ended the connection ({how})", f"see the log of {name}", False)
    return Unreachable(f"{address} answers, but no channel could be made yet", "try again", False)


def abort_if_alive(context: Any, error: MpcacheError) -> None:
    """End a call on the server's side with a typed status, unless the caller is gone."""
    if context.is_active():
        abort(context, error)
