"""How many calls anybody may have open at a server, by the name in the certificate.

A call holds a thread of the server for as long as it lasts, one that has not sent its first message as well. So every name
has calls of its own: a client that opens as many as it may, and lets all of them idle, takes none from another client, from
a model owner or from a peer. The server has threads for all of them (made when they are needed) and some more, in which
calls beyond a cap are refused within milliseconds. A call without a first message ends after `first_message_seconds`.

* A client or a model owner: `max_calls_per_client`; where that is left out as many as its sessions that run, wait or are
  just leaving, and 8 more. All of them together: 1 024.
* A compute party or the dealer: two for every session that the server runs, lets wait or sees leaving, and 16 more.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc

from mpc.errors import MpcacheError
from parties.errors import Busy
from parties.server.permissions import Permissions
from parties.transport.pieces import whole

PEER_FURTHER = 16
ALL_CLIENTS = 1024
REFUSING = 16  # threads in which calls are refused
WAITING = 1024  # calls that may wait for such a thread; gRPC refuses further ones


class Calls:
    """The open calls of one server. Names that have no role are refused before they are counted."""

    def __init__(self, server: str, permissions: Permissions) -> None:
        self._server = server
        self._permissions = permissions
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._clients = 0

    def cap(self, name: str) -> int:
        """Return how many calls `name` may have open."""
        if self._permissions.is_peer(name):
            return 2 * self._permissions.all_sessions() + PEER_FURTHER
        return self._permissions.calls(name)

    @property
    def threads(self) -> int:
        """Return how many threads the server needs."""
        clients = sum(self.cap(name) for name in self._permissions.clients_and_owners())
        peers = sum(self.cap(name) for name in self._permissions.peers())
        return min(clients, ALL_CLIENTS) + peers + REFUSING

    def enter(self, name: str) -> None:
        """Count a call. Raises `Busy` naming the caller, its cap and the setting when it has as many as it may."""
        cap, peer = self.cap(name), self._permissions.is_peer(name)
        with self._lock:
            if self._open[name] >= cap:
                setting = "" if peer else f" ('max_calls_per_client' in the 'limits' of {self._server})"
                raise Busy(
                    f"'{name}' has {cap} calls open at {self._server}, which is as many as it may{setting}: end some of "
                    "them, then try again"
                )
            if not peer and self._clients >= ALL_CLIENTS:
                raise Busy(f"clients have {ALL_CLIENTS} calls open at {self._server}; '{name}' must try again later")
            self._open[name] += 1
            self._clients += not peer

    def leave(self, name: str) -> None:
        """Count a call that is over as such."""
        with self._lock:
            self._open[name] -= 1
            self._clients -= not self._permissions.is_peer(name)
            if not self._open[name]:
                del self._open[name]

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Count a call for the time of the block. Raises as `enter`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave(name)


CALLS = {"Generate": "generate", "Exchange": "exchange", "Tape": "have_tape", "StoreModel": "store", "RemoveModel": "store"}
Refuse = Callable[[Any, str, str, MpcacheError], None]


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Counts every call of a server before anything of it is read.

    first_seconds: how long a call with a single request may take to send it; gRPC itself would hold a thread for ever.
    caller(context): who calls, as the server trusts it. refuse(context, name, call, error): ends a call; call: its name in
    logs and metrics.
    """

    def __init__(
        self,
        calls: Calls,
        permissions: Permissions,
        first_seconds: float,
        caller: Callable[[Any], str],
        refuse: Refuse,
    ) -> None:
        self._calls = calls
        self._permissions = permissions
        self._first_seconds = first_seconds
        self._caller = caller
        self._refuse = refuse

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the method's handler, guarded. All read their requests as streams, which is the same on the wire."""
        handler = continuation(details)
        if handler is None:
            return None
        call = CALLS.get(details.method.rpartition("/")[2], "ask")
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        single = not handler.request_streaming

        def answer(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            with ExitStack() as stack:
                name = self._admit(context, call, single, stack)
                if name is None:
                    return
                request = self._only(requests, context) if single else requests
                if request is not None:
                    response = behaviour(request, context)
                    yield from whole(response) if handler.response_streaming else [response]

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _admit(self, context: Any, call: str, single: bool, stack: ExitStack) -> str | None:
        """Return the caller's name, counted while `stack` is open. None when the call was refused."""
        name = "unknown"
        try:
            name = self._caller(context)
            if single:  # streams say for what they need a role
                self._permissions.may_ask(name)
            if self._permissions.has_role(name):
                stack.enter_context(self._calls.held(name))
        except MpcacheError as error:
            self._refuse(context, name, call, error)
            return None
        return name

    def _only(self, requests: Iterator[Any], context: Any) -> Any:
        """Return the request of a call that has one; None when it does not come in time, and the call is over."""
        timer = threading.Timer(self._first_seconds, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            return next(requests, None)
        except Exception:  # gRPC's, without a type: the caller is gone, or the time is over
            return None
        finally:
            timer.cancel()
