"""What is said of every response, whatever its status: a line of log and Prometheus's numbers. No path, no text, no key."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parties.events import log

OTHER = "other"
SECONDS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


def told(name: str, text: str, **facts: object) -> None:
    """Log an event of the gateway: a text for a person, facts for a program. Both are public: no path, no text, no key."""
    log.info("gateway: %s", text, extra={"event": name, "server": "gateway", "facts": facts})


class Metrics:
    """Numbers of one gateway. Labels are this program's own paths and HTTP's status codes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "mpcache_gateway_responses_total", "Responses that are over.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "mpcache_gateway_response_seconds",
            "Seconds to a response's end.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("mpcache_gateway_prompt_tokens_total", "Tokens of prompts.", registry=self.registry)
        self.tokens = Counter("mpcache_gateway_tokens_total", "Tokens generated.", registry=self.registry)
        self.running = Gauge("mpcache_gateway_running", "Requests at the parties now.", registry=self.registry)
        self.waiting = Gauge("mpcache_gateway_waiting", "Requests in the queue now.", registry=self.registry)

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self.registry)


class Access:
    """ASGI middleware around everything else, so that refusals are seen too."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else OTHER
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else OTHER
        self._metrics.responses.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        facts = {"method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
        told("response", f"{method} {path} {status}, {seconds:.2f} s", **facts)
