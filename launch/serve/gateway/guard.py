"""What every request passes first: the host's name, the key; and what no request gets: the text of an unexpected error."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.serve.gateway.errors import ApiError, invalid
from launch.serve.gateway.page import PAGE
from launch.serve.gateway.settings import GatewaySettings
from parties.wire.error_codec import public

HEALTH = "/health"
OPEN = frozenset({HEALTH, PAGE})  # a page and that this server runs: nothing that a key keeps


class Guard:
    """ASGI middleware. Refuses names that are not this gateway's (DNS rebinding: a web page whose name points here) and
    requests without one of its keys: other users and programs of the machine reach a loopback address too."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        except Exception as error:
            public(error, "the gateway")  # logs type and place, not the message
            if not started:
                await ApiError(500, "internal error; the gateway's log says where", "server_error").response()(
                    scope, receive, send
                )

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._is_own(headers.get("host", "")):
            return invalid(
                "the Host header names another server; start the gateway with --allowed-host NAME if this name is its own",
                None,
                "wrong_host",
                403,
            )
        if self._settings.keys and scope["path"] not in OPEN and not self._has_key(headers.get("authorization", "")):
            refusal = invalid("Incorrect API key provided: send 'Authorization: Bearer KEY'", None, "invalid_api_key", 401)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return None

    def _is_own(self, header: str) -> bool:
        """Whether the Host header is one of this gateway's names or an address, which no other name server can give out."""
        name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
        name = name.strip("[]").lower().rstrip(".")
        if name in self._settings.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_key(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = key.strip().encode()
        fits = [hmac.compare_digest(given, known) for known in self._settings.keys]  # all, for the same time
        return scheme.lower() == "bearer" and any(fits)
