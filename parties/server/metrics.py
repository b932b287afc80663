"""What a server counts, for Prometheus. Labels are names of the configuration and of this program, not what a peer wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from mpc.errors import EnvironmentProblem
from parties.config.telemetry import Listener
from parties.names import Role
from parties.wire.error_codec import CODES
from protocols.registry import SUITES

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STATES = ("coming", "waiting", "running")
OTHER = "other"


@dataclass(frozen=True)
class Metric:
    """One metric: its kind, labels, the roles that have it, and what it says."""

    kind: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    labels: tuple[str, ...]
    help: str
    roles: tuple[str, ...] = ("party", "dealer")
    options: dict[str, Any] = field(default_factory=dict)


_PARTY = ("party",)
METRICS = (
    Metric(Gauge, "mpcache_info", ("name", "role", "version"), "1; its labels say who this is."),
    Metric(Gauge, "mpcache_serving", (), "1 while new sessions are taken, 0 while shutting down."),
    Metric(
        Gauge,
        "mpcache_sessions",
        ("state",),
        "Sessions now: coming (other servers come first), waiting for their turn (the queue), or running.",
    ),
    Metric(Counter, "mpcache_sessions_ended_total", ("client", "suite", "outcome"), "Sessions that are over, by outcome."),
    Metric(Counter, "mpcache_calls_refused_total", ("call", "code"), "Calls that came to nothing, by error code."),
    Metric(Counter, "mpcache_prompt_tokens_total", ("client",), "Tokens of the prompts of sessions that are over.", _PARTY),
    Metric(Counter, "mpcache_tokens_total", ("client",), "Tokens generated.", _PARTY),
    Metric(Counter, "mpcache_rounds_total", (), "Rounds of sessions that are over.", _PARTY),
    Metric(
        Counter, "mpcache_sent_bytes_total", ("peer",), "Payload bytes sent to a party, of sessions that are over.", _PARTY
    ),
    Metric(
        Counter, "mpcache_received_bytes_total", ("peer",), "Payload bytes of a party, of sessions that are over.", _PARTY
    ),
    Metric(
        Counter,
        "mpcache_tape_bytes_total",
        (),
        "Bytes of tape used (party) or dealt for all parties (dealer), of sessions that are over.",
    ),
    Metric(
        Histogram,
        "mpcache_session_seconds",
        ("suite",),
        "Seconds from a session's turn to its end.",
        options={"buckets": LONG},
    ),
    Metric(Histogram, "mpcache_queue_seconds", (), "Seconds that a session waited for its turn.", options={"buckets": LONG}),
    Metric(
        Histogram,
        "mpcache_first_token_seconds",
        ("suite",),
        "Seconds from a session's turn to its first token.",
        _PARTY,
        {"buckets": LONG},
    ),
    Metric(
        Histogram, "mpcache_token_seconds", ("suite",), "Seconds from one token to the next.", _PARTY, {"buckets": SHORT}
    ),
    Metric(Counter, "mpcache_step_rounds_total", (), "Rounds of sessions in step: messages sent to each peer.", _PARTY),
    Metric(
        Counter,
        "mpcache_step_sections_total",
        (),
        "Sessions' exchanges that left in them; divided by the rounds: sessions that share one.",
        _PARTY,
    ),
    Metric(
        Counter,
        "mpcache_step_overhead_bytes_total",
        (),
        "Bytes of those messages that belong to no session: the lists of what is in them.",
        _PARTY,
    ),
    Metric(Counter, "mpcache_model_loads_total", (), "Times that a model's weights were loaded."),
    Metric(Gauge, "mpcache_loaded_models", (), "Loads kept in memory."),
    Metric(Gauge, "mpcache_cache_bytes", (), "Rows of sessions in memory, where 'max_paged_bytes' is set.", _PARTY),
    Metric(Gauge, "mpcache_paged_bytes", (), "Rows of sessions in pages of the store.", _PARTY),
    Metric(Gauge, "mpcache_stored_prefixes", (), "Registered prefixes whose rows are stored.", _PARTY),
    Metric(Gauge, "mpcache_stored_models", (), "Models whose shares are stored.", _PARTY),
    Metric(Gauge, "mpcache_tapes", (), "Unused tapes on disk; 0 without 'tapes'.", _PARTY),
    Metric(Gauge, "mpcache_certificate_expiry_timestamp_seconds", (), "When this server's certificate expires, Unix time."),
)


class Metrics:
    """The metrics of one server, in a registry of their own.

    role: whose metrics. name, version: for `mpcache_info`. clients: names that may be labels. Gauges show nothing until they
    `follow` what they measure.
    """

    def __init__(self, role: Role, name: str, version: str, clients: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self._all: dict[str, Any] = {}
        self._clients = frozenset(clients)
        self._http: Any = None
        for m in METRICS:
            if role in m.roles:
                shown = m.name.removesuffix("_total") if m.kind is Counter else m.name
                self._all[m.name] = m.kind(shown, m.help, m.labels, registry=self.registry, **m.options)
        self.get("mpcache_info", name=name, role=role, version=version).set(1)

    def get(self, name: str, /, **labels: str) -> Any:
        """Return a metric of `METRICS`, with its labels. Values that are not known beforehand count as "other"."""
        return (
            self._all[name].labels(**{key: self._bounded(key, text) for key, text in labels.items()})
            if labels
            else (self._all[name])
        )

    def follow(self, name: str, value: Callable[[], float], /, **labels: str) -> None:
        """Let a gauge show value() whenever somebody reads it."""
        self.get(name, **labels).set_function(value)

    def _bounded(self, label: str, text: str) -> str:
        known: Any = {"client": self._clients, "suite": SUITES, "outcome": CODES, "code": CODES}.get(label)
        return text if known is None or text in known else OTHER

    # ---- the listener ------------------------------------------------------------------------------------------------
    def listen(self, where: Listener) -> str:
        """Serve them over HTTP; the address. Raises `EnvironmentProblem` when the port cannot be had."""
        try:
            self._http, _ = start_http_server(where.port, where.host, self.registry)
        except OSError as error:
            raise EnvironmentProblem(
                f"metrics cannot be served at {where.host}:{where.port} ({(error.strerror or 'refused').lower()}): choose "
                "another port in 'metrics'"
            ) from None
        return f"{where.host}:{self._http.server_port}"

    def stop(self) -> None:
        """Close the listener."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
