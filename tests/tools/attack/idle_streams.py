"""One client holds all of a party's threads with streams that say nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import grpc

from models import public_tables
from mpc.errors import MpcacheError
from parties.client.model_reference import ModelReference
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, architecture_hash, new_id, package_version
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import ADVERSARY, PROMPT, channel, live, shared

STREAMS = 136
SESSIONS = 12
SECONDS = 15.0  # less than a session waits for a party that never joins it


class IdleStreams:
    """Opens sessions at one or both parties that never send a prompt, and 136 streams at each server: of sessions that send
    signs of life and no opening, and of questions without a question. Another client's session must end meanwhile."""

    name: ClassVar[str] = "idle-streams"
    who: ClassVar[str] = "an authorised client"
    what: ClassVar[str] = "holds every thread and place of both parties with calls that say nothing"

    def run(self, folder: Path) -> Verdict:
        """About ten seconds."""
        over = threading.Event()
        with live(folder, first_message_seconds=2.0) as deployment, ExitStack() as stack:
            model = shared(deployment)
            stack.callback(over.set)
            calls: list[Any] = []
            links = {name: stack.enter_context(channel(deployment, name)) for name in ("party0", "party1", "dealer")}
            for number in range(SESSIONS):
                opening = _opening(deployment, model)
                where = deployment.names[: 1 + number % 2]  # every other one at one party alone
                for call in [_unfed(links[server], opening, over) for server in where]:
                    stack.callback(call.cancel)
            for server, link in links.items():
                calls += [(server, _idle(link, server, n, over)) for n in range(STREAMS)]
            time.sleep(0.5)
            began = time.perf_counter()
            try:
                tokens = deployment.client().ask(PROMPT, 2, suite="masked", stop_ids=()).tokens
                failed = ""
            except MpcacheError as error:
                tokens, failed = [], str(error)
            seconds = time.perf_counter() - began
            time.sleep(2.0)  # until the first messages are overdue
            over.set()
            ends = {str(_end(call, server)) for server, call in calls}
        capped = sorted(text for text in ends if f"'{ADVERSARY}' has" in text and "max_calls_per_client" in text)
        silent = sorted(text for text in ends if "first_message_seconds" in text)
        caught = len(tokens) == 2 and seconds < SECONDS and bool(capped) and bool(silent)
        how = f"took {seconds:.1f} s" if tokens else f"failed: {failed}"
        detail = f"another client's session {how} beside {len(calls)} streams"
        return Verdict(caught, "; ".join([*capped[:1], *silent[:1]]) or failed or "no stream was refused", detail)


def _opening(deployment: Deployment, model: ModelReference) -> bytes:
    """A session that a party accepts."""
    manifest = Manifest(
        protocol=PROTOCOL_VERSION,
        version=package_version(),
        model=model.id,
        architecture=architecture_hash(model.architecture),
        suite="masked",
        fraction_bits=14,
        options={},
        prefix_tokens=0,
        chunk_tokens=[],
        chunk_again=0,
        chunk_slots=0,
        prompt_tokens=len(PROMPT),
        new_tokens=2,
        decoding="greedy",
        temperature=None,
        policy="full",
        draft=0,
        tables=public_tables.digest(model.architecture),
        parties=deployment.names,
    )
    opening = wire.Open(session=new_id(), manifest=manifest.canonical())
    return wire.ClientMessage(open=opening).SerializeToString()


def _unfed(link: grpc.Channel, opening: bytes, over: threading.Event) -> Any:
    """A session that is opened and never gets its prompt."""

    def messages() -> Iterator[bytes]:
        yield opening
        while not over.wait(0.5):
            yield wire.ClientMessage(heartbeat=wire.Heartbeat()).SerializeToString()

    return link.stream_stream("/mpcache.ComputeParty/Generate")(messages(), wait_for_ready=True)


def _idle(link: grpc.Channel, server: str, number: int, over: threading.Event) -> Any:
    """A call that never says what it is about."""

    def beats() -> Iterator[bytes]:
        while not over.wait(0.5):
            yield wire.ClientMessage(heartbeat=wire.Heartbeat()).SerializeToString()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    if server != "dealer" and number % 2:
        return link.stream_stream("/mpcache.ComputeParty/Generate")(beats(), wait_for_ready=True)
    service = "Dealer" if server == "dealer" else "ComputeParty"
    return link.stream_stream(f"/mpcache.{service}/Describe")(nothing(), wait_for_ready=True)


def _end(call: Any, server: str) -> MpcacheError | None:
    """How a call ended."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return from_rpc(error, server, "opening a call")
    return None
