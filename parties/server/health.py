"""The standard gRPC health service: for certified peers beside the role's own service, if wanted on loopback in plain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mpc.errors import EnvironmentProblem
from parties.transport.connection import check_free

THREADS = 2
LOOPBACK = "127.0.0.1"


class _Guarded(health.HealthServicer):  # type: ignore[misc]
    """Answers only those whom guard(context) lets pass."""

    def __init__(self, guard: Callable[[Any], object]) -> None:
        super().__init__(experimental_non_blocking=False)  # so that a watch lasts as long as its call
        self._guard = guard

    def Check(self, request: Any, context: Any) -> Any:
        self._guard(context)
        return super().Check(request, context)

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        self._guard(context)
        return super().Watch(request, context, send_response_callback)


class Health:
    """The health of one server. services: names beside "", which is the server as a whole."""

    def __init__(self, services: list[str], guard: Callable[[Any], object]) -> None:
        self._services = ["", *services]
        self._servicers = [_Guarded(guard)]
        self._plain: grpc.Server | None = None
        self.set(False)

    def register(self, server: grpc.Server) -> None:
        """Add the service to the role's own server: certified peers with a role may ask."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicers[0], server)

    def listen(self, port: int) -> str:
        """Answer at a loopback port too, without TLS; the address. Raises `EnvironmentProblem`."""
        check_free(f"{LOOPBACK}:{port}", "health_port")
        plain = grpc.server(ThreadPoolExecutor(THREADS, thread_name_prefix="health"), options=[("grpc.so_reuseport", 0)])
        servicer = health.HealthServicer()
        self._servicers.append(servicer)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, plain)
        try:
            found = plain.add_insecure_port(f"{LOOPBACK}:{port}")
        except RuntimeError:
            found = 0
        if not found:
            raise EnvironmentProblem(f"health cannot be served at {LOOPBACK}:{port}: choose another 'health_port'")
        plain.start()
        self._plain = plain
        return f"{LOOPBACK}:{found}"

    def set(self, serving: bool) -> None:
        """Tell all who ask or watch."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for servicer in self._servicers:
            for service in self._services:
                servicer.set(service, status)

    def stop(self) -> None:
        """Close the loopback listener."""
        if self._plain is not None:
            self._plain.stop(0)
            self._plain = None
