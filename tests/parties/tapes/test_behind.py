"""Tapes dealt beforehand for sessions behind registered texts, over real gRPC: no dealer runs, the texts are registered by
tapes as well, and rows get their masks from the deal's load."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import load_checkpoint, read_architecture
from models.chunks import ChunkPlan
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.generation import GenerationPlan, PlainModel
from mpc.errors import TapeError
from parties.client.client import GenerationResult
from parties.client.prefixes import SECRET, ChunkChoice
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.model_owner.prefixes import PrefixText, add_prefix
from parties.program import MODEL, Program
from parties.tapes.deal import Deal, DealOrder, DealSpec, deal
from parties.transport.channel import GrpcChannel
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints
from tests.models.test_prefixes import BEHIND, PROMPT
from tests.parties.deployment import Deployment

NEW = 2
TEXT, OWN = PROMPT[:BEHIND], PROMPT[BEHIND:]
OTHER = [(5 * n * n + n) % 90 + 3 for n in range(BEHIND)]
POLICY = "snapkv:budget=0.5,window=4"


class Offline:
    """Parties with folders of tapes, and no dealer."""

    def __init__(self, folder: Path, parties: int, suite: str, program: Program = MODEL) -> None:
        random_checkpoints.save("llama-grouped", folder / "checkpoint", layers=1)
        self.checkpoint, self.suite = folder / "checkpoint", SuiteSpec(suite)
        self.deployment = Deployment(folder, parties, program, deadline_seconds=60)
        self.root, self.deals = folder / "tapes", 0

    def start(self, *names: str) -> None:
        for name in names or self.deployment.names:
            self.deployment.start_one(name, tapes=self.root / name)

    def restart(self) -> None:
        for name in self.deployment.names:
            self.deployment.servers[name].stop()
        self.start()

    def deal(self, prompt: int, new: int, **spec: Any) -> Deal:
        self.deals += 1
        config, out = self.deployment.config("dealer", "dealer"), self.deployment.folder / f"deal {self.deals}"
        made = DealSpec([prompt], new, spec.pop("sessions", 1), self.suite, **spec)
        dealt = deal(DealOrder(config, read_architecture(self.checkpoint), made), out)
        for name, folder in dealt.folders.items():
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (folder / dealt.load).rename(self.root / name / dealt.load)
        return dealt

    def register(self, name: str, ids: list[int], secret: bool = False) -> None:
        self.deal(len(ids), 1, decoding="rows")
        owner = self.deployment.config("model-owner", "owner")
        add_prefix(owner, "tiny", PrefixText(name, ids, secret, self.suite))

    def ask(self, ids: list[int], prefix: str | None, policy: str = "full", **how: Any) -> GenerationResult:
        params = SamplingParams(NEW, ignore_eos=True)
        request = GenerationRequest(ids, params, self.suite, policy, model="tiny", prefix=prefix, **how)
        return self.deployment.client().generate(request)

    def wanted(self, ids: list[int], policy: str = "full") -> list[int]:
        return PlainModel(load_checkpoint(self.checkpoint)).generate(ids, GenerationPlan(len(ids), NEW, policy=policy))


class Spy:
    """A program that notes what parties send while they load rows."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[list[tuple[int, int, bytes]]] = []
        self._loading, self._send = threading.local(), GrpcChannel.send
        self.program = Program(MODEL.load, MODEL.run, self._load_rows, MODEL.register)
        spy = self

        def send(channel: GrpcChannel, peer: int, payload: bytes) -> None:
            if getattr(spy._loading, "now", None) is not None:
                spy._loading.now.append((channel.party, peer, bytes(payload)))
            spy._send(channel, peer, payload)

        patch.setattr(GrpcChannel, "send", send)

    def _load_rows(self, *arguments: Any) -> dict[str, Any]:
        self._loading.now = []
        try:
            return MODEL.load_rows(*arguments)
        finally:
            if self._loading.now:  # not the dealer
                self.sent.append(self._loading.now)
            self._loading.now = None


def check_costs(offline: Offline, found: GenerationResult, setting: Setting) -> None:
    """What a session with rows that were there counts is what is predicted; before its stages crypten agrees once."""
    predicted = estimate(read_architecture(offline.checkpoint), setting, len(OWN), NEW).total
    stages = found.costs[offline.deployment.names[-1]]["stages"]
    for name in ("rounds", "bytes_sent", "offline_bytes"):
        assert sum(cost[name] for stage, cost in stages.items() if stage) == predicted.total(name), name


def test_registered_and_begun_behind_without_a_dealer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy, parties = Spy(monkeypatch), 3
    offline = Offline(tmp_path, parties, "masked", spy.program)
    behind: dict[str, Any] = {"behind": BEHIND, "policy": POLICY}
    offline.deal(len(OWN), NEW, sessions=4, **behind)
    offline.start()
    try:
        offline.deployment.share(offline.checkpoint)
        offline.register("terms", TEXT)
        offline.register("other", OTHER, secret=True)
        first, second = (offline.ask(OWN, "terms", POLICY) for _ in range(2))
        assert first.tokens == second.tokens == offline.wanted(PROMPT, POLICY)
        check_costs(offline, second, Setting("masked", parties, POLICY, behind=BEHIND))
        assert len(spy.sent) == parties  # the second session goes on with the rows of the first
        offline.restart()
        assert offline.ask(OWN, "terms", POLICY).tokens == first.tokens
        assert sorted(spy.sent[:parties]) == sorted(spy.sent[parties:])  # never other rows under the load's masks
        with pytest.raises(TapeError, match=r"1 for another model's weights, .* or other registered texts or another st"):
            offline.ask(OWN, "other", POLICY)
        whole = "has no tape for a prompt of 18 tokens and 2 new tokens .* it has 1 dealt with --prefix 13;"
        with pytest.raises(TapeError, match=whole):
            offline.ask(PROMPT, None, POLICY)
        less = r"prompt of 4 tokens behind a prefix of 13 and 2 new.* 1 for a prompt of 5 behind a prefix of 13 and up"
        with pytest.raises(TapeError, match=rf"{less}.*--prompt 4 --tokens 2 --suite masked --prefix 13"):
            offline.ask(OWN[1:], "terms", POLICY)
        offline.deal(len(OWN), NEW, **behind)
        assert offline.ask(OWN, "other", POLICY).tokens == offline.wanted([*OTHER, *OWN], POLICY)
    finally:
        offline.deployment.stop()


def test_the_other_suite(tmp_path: Path) -> None:
    offline = Offline(tmp_path, 2, "crypten")
    offline.deal(len(OWN), NEW, sessions=2, behind=BEHIND)
    offline.start()
    try:
        offline.deployment.share(offline.checkpoint)
        offline.register("terms", TEXT)
        first, second = (offline.ask(OWN, "terms") for _ in range(2))
        assert first.tokens == second.tokens == offline.wanted(PROMPT)
        check_costs(offline, second, Setting("crypten", behind=BEHIND))
    finally:
        offline.deployment.stop()


def test_chunks_in_secret_behind_a_prefix_without_a_dealer(tmp_path: Path) -> None:
    offline = Offline(tmp_path, 2, "masked")
    chunks = {"first": PROMPT[3:8], "second": PROMPT[8:13], "third": [41, 7, 66, 12, 80]}
    offline.deal(len(OWN), NEW, behind=3, chunks=ChunkPlan((5, 5), 5, among=3))
    offline.start()
    try:
        offline.deployment.share(offline.checkpoint)
        for name, ids in {"terms": PROMPT[:3], **chunks}.items():
            offline.register(name, ids)
        found = offline.ask(OWN, "terms", chunks=ChunkChoice(["third", "first"], 1.0, SECRET))
        assert found.tokens == offline.wanted([*PROMPT[:3], *chunks["third"], *chunks["first"], *OWN])
        missing = (
            r"behind a prefix of 3 and chunks of 5, 5 \(3 computed again, each one of 3\).*--chunks 5,5 --again 3 --cand"
        )
        with pytest.raises(TapeError, match=missing):
            offline.ask(OWN, "terms", chunks=ChunkChoice(["third", "first"], 0.5, SECRET))
    finally:
        offline.deployment.stop()
