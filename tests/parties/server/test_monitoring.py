"""What those who run a server see: health, metrics, logs, traces; and that none of it holds a secret."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from launch.terminal.logs import JsonFormatter
from mpc.errors import ConfigurationError, EnvironmentProblem, MpcacheError, PermissionRefused
from parties.config.telemetry import Telemetry
from parties.identity.certificates import check
from parties.server.metrics import METRICS
from parties.server.traces import Traces
from parties.transport.connection import connect
from parties.wire.error_codec import CODES
from protocols.registry import SUITES
from protocols.suite import OutputShare
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.server.test_serving import PATIENT, until
from tests.parties.test_faults import idle
from tests.parties.toy import Toy, expected

CANARY = [7, 11, 7, 11]  # no other numbers of a run look like this
CANARY_TEXT = re.compile(r"7\D{1,3}11\D{1,3}7\D{1,3}11|canary")


class Logged:
    """Everything that was logged since, as JSON lines."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(JsonFormatter())

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if event is None or line.get("event") == event]


@pytest.fixture
def logged() -> Iterator[Logged]:
    logs = Logged()
    root, own = logging.getLogger(), logging.getLogger("mpcache")
    before = own.level
    root.addHandler(logs.handler)
    own.setLevel(logging.DEBUG)
    yield logs
    own.setLevel(before)
    root.removeHandler(logs.handler)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    toy = Toy()
    settings: dict[str, Any] = {**PATIENT, "metrics": {"port": 0}, "health_port": 0}
    with Deployment(tmp_path_factory.mktemp("watched"), 2, toy.program, **settings) as deployment:
        yield Running(deployment, toy, deployment.share(checkpoint))


def scrape(server: Any) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def samples(server: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scrape(server))
        for sample in family.samples
    }


# ---- metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_count_what_a_session_did(watched: Running) -> None:
    party, dealer = (watched.deployment.servers[name] for name in ("party0", "dealer"))
    idle(watched.deployment, 60)
    before = samples(party)
    result = watched.deployment.client().ask([1, 2, 3], 4, stop_ids=())
    assert result.tokens == expected([1, 2, 3], 4, VOCABULARY)
    idle(watched.deployment, 60)
    after = samples(party)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    total = result.costs["party0"]["total"]
    assert grown("mpcache_sessions_ended_total", client="client", suite="crypten", outcome="complete") == 1
    assert grown("mpcache_prompt_tokens_total", client="client") == 3
    assert grown("mpcache_tokens_total", client="client") == 4
    assert grown("mpcache_rounds_total") == total["rounds"]
    assert grown("mpcache_sent_bytes_total", peer="party1") == total["bytes_sent"]
    assert grown("mpcache_received_bytes_total", peer="party1") == total["bytes_received"]
    assert grown("mpcache_tape_bytes_total") == total["offline_bytes"]
    assert grown("mpcache_session_seconds_count", suite="crypten") == 1
    assert grown("mpcache_first_token_seconds_count", suite="crypten") == 1
    assert grown("mpcache_token_seconds_count", suite="crypten") == 3
    assert grown("mpcache_queue_seconds_count") == 1
    assert after["mpcache_sessions", (("state", "running"),)] == 0
    assert after["mpcache_stored_models", ()] == 1
    assert after["mpcache_loaded_models", ()] == 1
    assert after["mpcache_serving", ()] == 1
    assert after["mpcache_certificate_expiry_timestamp_seconds", ()] == party.identity.expires.timestamp()
    assert samples(dealer)["mpcache_tape_bytes_total", ()] > 0


def test_metrics_are_those_of_the_table_with_bounded_labels(watched: Running) -> None:
    with pytest.raises(MpcacheError):
        watched.deployment.client("stranger").ask([1], 1, model=watched.model)
    known = {m.name: m for m in METRICS}
    allowed = {
        "client": {"client", "other"},
        "suite": {*SUITES, "other"},
        "outcome": CODES,
        "code": CODES,
        "call": {"generate", "store", "exchange", "ask", "have_tape"},
        "peer": {*watched.deployment.names, "dealer"},
        "state": {"coming", "waiting", "running"},
        "name": {*watched.deployment.names, "dealer"},
        "role": {"party", "dealer"},
        "version": {watched.deployment.servers["party0"].version},
    }
    for server in watched.deployment.servers.values():
        text = scrape(server)
        assert watched.model.id not in text
        assert "tiny" not in text
        assert "stranger" not in text
        families = [f for f in text_string_to_metric_families(text) if not f.name.endswith("_created")]
        assert {f.name for f in families} <= {name.removesuffix("_total") for name in known}
        for family in families:
            metric = known.get(family.name) or known[f"{family.name}_total"]
            assert server.role in metric.roles
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k != "le"}
                assert set(labels) == set(metric.labels)
                assert all(value in allowed[label] for label, value in labels.items()), sample


def test_the_table_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| `(mpcache_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| (.*) \|$", page, re.M)
    table = [
        (
            m.name,
            m.kind.__name__.lower(),
            ", ".join(f"`{label}`" for label in m.labels),
            " ".join(m.roles),
            m.help,
        )
        for m in METRICS
    ]
    assert [tuple(cell.strip() for cell in row) for row in rows] == table


def test_metrics_are_off_and_on_loopback_unless_asked_otherwise(two: Running, watched: Running, tmp_path: Path) -> None:
    assert two.deployment.servers["party0"].metrics_address == ""
    assert watched.deployment.servers["party0"].metrics_address.startswith("127.0.0.1:")
    port = int(watched.deployment.servers["party0"].metrics_address.rpartition(":")[2])
    deployment = Deployment(tmp_path, 2)
    with pytest.raises(EnvironmentProblem, match=f"metrics cannot be served at 127.0.0.1:{port} .*choose another port"):
        deployment.start_one("dealer", metrics={"port": port})
    deployment.start_one("dealer")  # nothing of the first attempt is left
    deployment.stop()
    with pytest.raises(ConfigurationError, match=r"metrics\.host: 'localhost' is not an IP address"):
        deployment.config("dealer", "dealer", metrics={"port": 1, "host": "localhost"})


# ---- health --------------------------------------------------------------------------------------------------------------


def ask(channel: grpc.Channel, service: str = "") -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_health(watched: Running) -> None:
    deployment = watched.deployment
    for name, service in (("party0", "mpcache.ComputeParty"), ("dealer", "mpcache.Dealer")):
        server = deployment.servers[name]
        with connect(check(deployment.certificates, "client"), deployment.peer(name), 60) as channel:
            assert [ask(channel), ask(channel, service)] == ["SERVING", "SERVING"]
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, "mpcache.Nonesuch")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with connect(check(deployment.certificates, "stranger"), deployment.peer(name), 60) as channel:
            stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
            for call in (lambda s=stub, r=request: s.Check(r), lambda s=stub, r=request: next(s.Watch(r))):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert server.health_address.startswith("127.0.0.1:")
        with grpc.insecure_channel(server.health_address) as channel:
            assert ask(channel, service) == "SERVING"


def test_health_before_during_and_after_shutting_down(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 2, Toy().program, health_port=0)
    try:
        server = deployment.start_one("party0")
        identity = check(deployment.certificates, "client")
        with (
            connect(identity, deployment.peer("party0"), 60) as channel,
            grpc.insecure_channel(server.health_address) as plain,
        ):
            seen = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
            assert server.drain(0)
            assert next(seen).status == health_pb2.HealthCheckResponse.NOT_SERVING
            seen.cancel()
            for service in ("", "mpcache.ComputeParty"):
                assert ask(channel, service) == ask(plain, service) == "NOT_SERVING"
            server.stop()
            for one in (channel, plain):
                with pytest.raises(grpc.RpcError):
                    ask(one)
    finally:
        deployment.stop()


# ---- logs ----------------------------------------------------------------------------------------------------------------


def test_logs_tell_of_sessions_once(watched: Running, logged: Logged) -> None:
    result = watched.deployment.client().ask([1, 2], 2, stop_ids=())
    idle(watched.deployment, 60)
    until(lambda: len(logged.lines("session_ended")) == 3)
    (opened,) = [line for line in logged.lines("session_opened") if line["server"] == "party0"]
    assert (opened["session"], opened["client"], opened["prompt_tokens"]) == (result.session, "client", 2)
    (ended,) = [line for line in logged.lines("session_ended") if line["server"] == "party0"]
    assert (ended["outcome"], ended["tokens"], ended["level"]) == ("complete", 2, "info")
    assert ended["rounds"] == result.costs["party0"]["total"]["rounds"]
    assert ended["seconds"] > 0
    assert "error" not in ended
    assert not logged.lines("refused")


def test_logs_tell_of_refusals_and_failures_once(watched: Running, logged: Logged) -> None:
    with pytest.raises(PermissionRefused):
        watched.deployment.client("stranger").models()
    refusals = [line for line in logged.lines("refused") if line["server"] == "party0"]
    assert {(line["peer"], line["call"], line["code"], line["level"]) for line in refusals} == {
        ("stranger", "ask", "permission", "warning")
    }
    with pytest.raises(ConfigurationError):
        watched.deployment.client().ask([1], 1, model=watched.model, policy="nonesuch")
    idle(watched.deployment, 60)

    def fail(party: int, share: OutputShare) -> OutputShare:
        raise ValueError("canary")

    watched.toy.after_share = fail
    try:
        with pytest.raises(MpcacheError):
            watched.deployment.client().ask([1], 1, stop_ids=())
    finally:
        watched.toy.after_share = Toy().after_share
    idle(watched.deployment, 60)
    until(lambda: len(logged.lines("session_ended")) == 3)
    ended = logged.lines("session_ended")
    assert len(ended) == len({line["server"] for line in ended}) == 3
    assert all(line["outcome"] != "complete" and line["error"] for line in ended if line["server"] != "dealer")
    assert [line for line in logged.lines("refused") if line["peer"] != "stranger"] == []


def test_no_prompt_and_no_token_in_logs_and_metrics(watched: Running, logged: Logged) -> None:
    client = watched.deployment.client()
    assert client.ask(CANARY, 2, stop_ids=()).tokens == [36, 37]

    def fail(party: int, share: OutputShare) -> OutputShare:
        raise ValueError(f"canary {CANARY} {share.share.tolist()}")

    watched.toy.after_share = fail
    try:
        with pytest.raises(MpcacheError, match="internal error"):
            client.ask(CANARY, 2, stop_ids=())
    finally:
        watched.toy.after_share = Toy().after_share
    idle(watched.deployment, 60)
    everything = logged.stream.getvalue() + "".join(scrape(server) for server in watched.deployment.servers.values())
    assert "session_ended" in everything
    assert not CANARY_TEXT.search(everything)
    keys = {key for line in logged.lines() for key in line}
    assert not keys & {"prompt", "tokens_generated", "share", "seed", "mask", "logits"}
    assert CANARY_TEXT.search(json.dumps(CANARY))


# ---- traces --------------------------------------------------------------------------------------------------------------


def test_traces(two: Running) -> None:
    exporter = InMemorySpanExporter()
    servers = two.deployment.servers
    before = {name: server.traces for name, server in servers.items()}
    for name, server in servers.items():
        server.traces = Traces(None, name, server.role, server.version, SimpleSpanProcessor(exporter))
    try:
        session = two.deployment.client().ask(CANARY, 2, stop_ids=()).session
        idle(two.deployment, 60)
        until(lambda: len([s for s in exporter.get_finished_spans() if s.name.endswith(" session")]) == 3)
    finally:
        for name, server in servers.items():
            server.traces = before[name]
    spans = exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans} == {int(session, 16)}
    (party,) = [span for span in spans if span.name == "party0 session"]
    stages = [span.name for span in spans if span.parent.span_id == party.context.span_id]
    assert stages == ["connect", "queue", "agree", "tape", "prompt", "prefill", "decode"] or "load" in stages
    assert party.attributes["mpcache.outcome"] == "complete"
    assert party.attributes["mpcache.prompt_tokens"] == 4
    assert not any(CANARY_TEXT.search(span.to_json()) for span in spans)


def test_traces_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Traces(None, "party0", "party", "1").session("0" * 32).stage("x") is None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(EnvironmentProblem, match=r"'telemetry' is configured but .* is not installed: run `pip install"):
        Traces(Telemetry(endpoint="http://127.0.0.1:4318/v1/traces"), "party0", "party", "1")
