"""The gateway as a server: a listening socket, TLS where it is wanted, and an end in good order."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from launch.serve.gateway.settings import GatewaySettings
from mpc.errors import ConfigurationError, EnvironmentProblem
from parties.config.role_config import split_address

GRACE_SECONDS = 5
HEADER_BYTES = 32 << 10
SPARE_CONNECTIONS = 100


def listen(address: str, option: str = "--listen") -> tuple[socket.socket, str]:
    """Return a listening socket and its "host:port". option: where the address came from.

    Raises `ConfigurationError`, `EnvironmentProblem` naming the address.
    """
    try:
        host, port = split_address(address, listening=True)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from None
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise EnvironmentProblem(f"cannot listen at {address}: {error.strerror}; correct the host in {option}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = (error.strerror or "refused").lower()
        raise EnvironmentProblem(f"cannot listen at {address}: {reason}; choose another port in {option}") from None
    found = listener.getsockname()[1]
    return listener, f"[{host}]:{found}" if ":" in host else f"{host}:{found}"


def server(
    app: ASGIApp, settings: GatewaySettings, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """Return the server of a gateway's application, or of one around it, whose `run(sockets=[...])` blocks until SIGTERM or
    Ctrl-C.

    Raises `ConfigurationError` for bad TLS files.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_concurrent + settings.max_queue + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = (getattr(error, "strerror", None) or getattr(error, "reason", None) or "error").lower()
        raise ConfigurationError(f"--tls-certificate {certificate}, --tls-key {key}: cannot be used ({reason})") from None
    return uvicorn.Server(config)
