"""OpenTelemetry traces of sessions, off unless configured: a span per session and per stage, with public attributes only.

All servers' spans of a session belong to one trace, whose id is the session's id.
"""

from __future__ import annotations

from typing import Any

from mpc.errors import EnvironmentProblem
from parties.config.telemetry import Telemetry

EXPORT_SECONDS = 5


class SessionTrace:
    """The spans of one session at one server. stage() and end() come from one thread."""

    def __init__(self, tracer: Any = None, id: str = "", server: str = "", attributes: dict[str, Any] | None = None) -> None:
        self._tracer = tracer
        self._span: Any = None
        self._stage: Any = None
        if tracer is None:
            return
        from opentelemetry import trace

        facts = {f"mpcache.{key}": value for key, value in (attributes or {}).items()}
        parent = trace.SpanContext(
            trace_id=int(id, 16) or 1, span_id=int(id[:16], 16) or 1, is_remote=True, trace_flags=trace.TraceFlags(1)
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        self._span = tracer.start_span(f"{server} session", context, attributes={"mpcache.session": id, **facts})
        self._inside = trace.set_span_in_context(self._span)

    def stage(self, name: str) -> None:
        """Begin a stage of the session, and end the one before."""
        if self._span is not None:
            if self._stage is not None:
                self._stage.end()
            self._stage = self._tracer.start_span(name, self._inside)

    def end(self, outcome: str, **attributes: Any) -> None:
        """End the session's spans."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        if self._stage is not None:
            self._stage.end()
        for key, value in {"outcome": outcome, **attributes}.items():
            self._span.set_attribute(f"mpcache.{key}", value)
        if outcome != "complete":
            self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()
        self._span = None


class Traces:
    """Where a server's traces go. processor: instead of the exporter of `settings`, for tests.

    Raises `EnvironmentProblem` when traces are wanted and the packages for them are not installed.
    """

    def __init__(self, settings: Telemetry | None, name: str, role: str, version: str, processor: Any = None) -> None:
        self._provider: Any = None
        self._tracer: Any = None
        self._name = name
        if settings is None and processor is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise EnvironmentProblem(
                f"'telemetry' is configured but {error.name} is not installed: run `pip install 'mpcache[telemetry]'`, or "
                "remove the key"
            ) from None
        facts = {"service.name": "mpcache", "service.instance.id": name, "service.version": version, "mpcache.role": role}
        self._provider = TracerProvider(resource=Resource(facts))
        if processor is None:
            assert settings is not None
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_SECONDS))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("mpcache", version)

    def session(self, id: str, **attributes: Any) -> SessionTrace:
        """Begin a session's spans."""
        return SessionTrace(self._tracer, id, self._name, attributes)

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()
