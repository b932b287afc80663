"""Registered prefixes over real gRPC: registered by the model's owner, stored at the parties, begun behind by clients."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel
from mpc import joint_products
from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, PermissionRefused
from mpc.in_step import StepMember
from mpc.joint_products import Products
from parties.client.client import GenerationResult
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.errors import RangeExceeded
from parties.model_owner.prefixes import PrefixText, add_prefix, prefixes, remove_prefix, remove_strays
from parties.pages import page_store
from parties.party.compute_party import ComputePartyServer
from parties.wire.held_prefix import RegisteredPrefix
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints
from tests.parties.deployment import Deployment

PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(18)]
BEHIND, NEW = 13, 3
MASKED = SuiteSpec("masked")


class Running:
    """A deployment with the real program, a shared model and its answers in plaintext."""

    def __init__(self, folder: Path, parties: int, **settings: Any) -> None:
        random_checkpoints.save("gpt2", folder / "checkpoint", layers=1)
        self.plain = PlainModel(load_checkpoint(folder / "checkpoint"))
        self.deployment = Deployment(folder, parties, **{"deadline_seconds": 60, "resume_seconds": 20, **settings})

    def share(self) -> Running:
        self.model = self.deployment.share(self.deployment.folder / "checkpoint", "tiny")
        return self

    def add(self, name: str, ids: list[int] = PROMPT[:BEHIND], **how: Any) -> RegisteredPrefix:
        model, suite = how.pop("model", "tiny"), how.pop("suite", MASKED)
        text = PrefixText(name, ids, suite=suite, **how)
        return add_prefix(self.deployment.config("model-owner", "owner"), model, text)

    def ask(self, ids: list[int], prefix: str | None, **how: Any) -> GenerationResult:
        params = SamplingParams(NEW, ignore_eos=True)
        request = GenerationRequest(ids, params, how.pop("suite", MASKED), model="tiny", prefix=prefix, **how)
        return self.deployment.client().generate(request)

    def wanted(self, ids: list[int]) -> list[int]:
        return self.plain.generate(ids, GenerationPlan(len(ids), NEW))

    def party(self, number: int = 1) -> ComputePartyServer:
        server = self.deployment.servers[f"party{number}"]
        assert isinstance(server, ComputePartyServer)
        return server

    def stored(self) -> list[int]:
        return [len(self.party(n).prefixes.prefixes()) for n in range(len(self.deployment.names))]

    def loads(self) -> list[int]:
        return [len(server.rows_cache) for server in self.deployment.servers.values()]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("real"), 2)
    with running.deployment:
        yield running.share()


def test_sessions_begin_behind_a_public_prefix(real: Running) -> None:
    stored, loads = real.stored(), real.loads()  # other tests may have begun with the same deployment
    registered = real.add("terms")
    assert registered.text == tuple(PROMPT[:BEHIND])
    assert real.stored() == [count + 1 for count in stored]
    assert registered in real.deployment.client().find_model("tiny").prefixes
    whole = real.ask(PROMPT, None)
    first = real.ask(PROMPT[BEHIND:], "terms")
    second = real.ask(PROMPT, "auto")
    assert whole.tokens == first.tokens == second.tokens == real.wanted(PROMPT)
    assert (whole.prefix, first.prefix, second.prefix) == (None, registered, registered)
    other = [*PROMPT[:BEHIND], 5, 80]
    assert real.ask(other, "auto").tokens == real.wanted(other)
    assert real.ask([9, *PROMPT[1:]], "auto").prefix is None  # no test registers what it begins with
    sent = [result.costs["party0"]["total"]["bytes_sent"] for result in (whole, first, second)]
    rows = 8 * BEHIND * 60 * 2
    assert sent[1] == sent[2] + rows  # the first session behind it has loaded the rows for all
    assert sent[2] < 0.61 * sent[0]  # of one layer and a head, which no prefix saves
    assert real.loads() == [count + 1 for count in loads]


def test_a_secret_text_is_told_to_nobody(real: Running) -> None:
    ids = [11, 22, 33, 44, 55]
    registered = real.add("secret", ids, secret=True)
    assert registered.text is None
    reference = real.deployment.client().find_model("tiny")
    assert next(one for one in reference.prefixes if one.name == "secret").text is None
    assert real.party().prefixes.get(registered.prefix).text is None  # type: ignore[union-attr]
    assert real.ask([7, 8, 9], "secret").tokens == real.wanted([*ids, 7, 8, 9])
    assert real.ask([*ids, 7, 8, 9], "auto").prefix is None


def test_prefixes_outlive_a_restart_and_go_with_their_owner(tmp_path: Path) -> None:
    running = Running(tmp_path, 3)
    with running.deployment:
        running.share().add("terms")
        running.party(1).stop()
        running.deployment.start_one("party1")
        assert running.ask(PROMPT[BEHIND:], "terms").tokens == running.wanted(PROMPT)
        owner = running.deployment.config("model-owner", "owner")
        assert [[one.name for one in found] for found in prefixes(owner).values()] == [["terms"]]
        with pytest.raises(ConfigurationError, match=r"no party holds a prefix 'other' of model 'tiny'; there are: terms"):
            remove_prefix(owner, None, "other")
        running.add("stray", [5, 6])
        running.party(1).prefixes.remove(running.party(1).prefixes.prefixes()[1])  # as if it had been killed before
        assert running.stored() == [2, 1, 2]
        assert remove_strays(owner, "tiny") == [("party0", "stray"), ("party2", "stray")]
        assert len(remove_prefix(owner, "tiny", "terms")) == 1
        assert running.stored() == [0, 0, 0]
        with pytest.raises(ConfigurationError, match="prefix 'terms': 0 of model 'tiny' fit; all parties hold: none"):
            running.ask(PROMPT[BEHIND:], "terms")
        running.add("again")
        from parties.model_owner.model_owner import remove_models

        remove_models(owner, [running.model.id])
        assert running.stored() == [0, 0, 0]


def test_who_may_register(real: Running) -> None:
    with pytest.raises(ConfigurationError, match="configuration is for role 'client'; a model's prefixes are its owner's"):
        add_prefix(real.deployment.config("client", "client"), "tiny", PrefixText("x", [1]))
    with pytest.raises(PermissionRefused, match=r"'client' may not register a prefix at party.: the model's owner does"):
        _register_as_client(real)


def _register_as_client(running: Running) -> None:
    from parties.model_owner.prefixes import RegisteringSession

    client = running.deployment.client()
    reference = client.find_model("tiny")
    session = RegisteringSession(client.config, reference, PrefixText("x", [1, 2]), lambda stage, done, total: None)
    client._run(session, lambda stage, done, total: None, _never())


def _never() -> Any:
    from parties.client.cancellation import Cancellation

    return Cancellation()


@pytest.mark.parametrize(
    ("name", "ids", "message"),
    [
        ("a b", [1], "name 'a b' is not a prefix's"),
        ("auto", [1], "name 'auto' means whichever"),
        ("off", [1], "name 'off' means no prefix"),
        ("x", [], "the prefix is empty"),
        ("x", [1, 97], "token number 2 lies outside the model's vocabulary of 97"),
        ("x", [1] * 64, "leaves no room for a prompt behind it: the model has 64 positions"),
    ],
)
def test_bad_texts_are_refused_before_anything_is_sent(real: Running, name: str, ids: list[int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        real.add(name, ids)


def test_a_prefix_for_other_settings_is_refused_by_name(real: Running) -> None:
    registered = real.add("settings", [3, 1, 4])
    with pytest.raises(ConfigurationError, match="the model has a prefix 'settings' already: take it away"):
        real.add("settings", [3, 1, 4])
    message = "prefix 'settings' was registered for suite 'masked' with 14 fraction bits and no options: ask with these"
    for suite in (SuiteSpec("crypten"), SuiteSpec("masked", options={"score": 9}), SuiteSpec("masked", 13)):
        with pytest.raises(ConfigurationError, match=message):
            real.ask([7], "settings", suite=suite)
    with pytest.raises(ConfigurationError, match=r"policy snapkv.* looks at the prompt's last 3 queries, of which 2"):
        real.ask([7, 8], "settings", policy="snapkv:budget=0.9,window=3")
    assert real.ask([7], registered.prefix).tokens == real.wanted([3, 1, 4, 7])


def test_policies_that_begin_with_scores_need_a_prefix_that_has_them(real: Running) -> None:
    policy, ids = "h2o:budget=0.5", PROMPT[1:BEHIND]
    real.add("without", ids)
    message = "was registered without the scores that policy h2o:budget=0.5 begins with"
    with pytest.raises(ConfigurationError, match=f"prefix 'without' {message}: let the model owner register it with them"):
        real.ask(PROMPT[BEHIND:], "without", policy=policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parties.client.prefixes.scores_of", lambda policy: "")
        with pytest.raises(ConfigurationError, match=f"prefix without at party. {message}"):
            real.ask(PROMPT[BEHIND:], "without", policy=policy)
    assert real.ask(PROMPT[1:], "auto", policy=policy).prefix is None
    registered = real.add("scored", ids, policy="h2o")
    assert real.ask(PROMPT[1:], "auto", policy=policy).prefix == registered
    whole = GenerationPlan(len(PROMPT) - 1, NEW, policy=policy)
    for _ in range(2):
        assert real.ask(PROMPT[BEHIND:], "scored", policy=policy).tokens == real.plain.generate(PROMPT[1:], whole)
    assert real.ask(PROMPT[BEHIND:], "scored").tokens == real.wanted(PROMPT[1:])  # its rows serve all others too
    with pytest.raises(ConfigurationError, match="policy = 'snapkv' needs no scores of a prefix, or none can be kept"):
        real.add("other", ids, policy="snapkv")


def test_parties_refuse_what_a_client_did_not_check(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real.add("checked", [3, 1, 4])
    monkeypatch.setattr("parties.client.prefixes.fits", lambda prefix, suite: True)
    with pytest.raises(ConfigurationError, match=r"prefix checked at party. was computed in suite 'masked': ask as it was"):
        real.ask([7], "checked", suite=SuiteSpec("crypten"))
    with pytest.raises(ConfigurationError, match=r"prefix checked at party. was computed with suite options as usual"):
        real.ask([7], "checked", suite=SuiteSpec("masked", options={"activation": 3}))
    assert real.ask([7], "checked").tokens == real.wanted([3, 1, 4, 7])


def test_damaged_rows_end_the_session_that_loads_them_and_no_other(real: Running) -> None:
    registered = real.add("damaged", [3, 1, 4])
    file = real.party(1).pages.root / f"prefix-{registered.prefix}" / "0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    message = r"pages/prefix-[0-9a-f]{32}/0001.safetensors of the store is not what was stored .* register it again"
    with pytest.raises(CheckpointError, match=message):
        real.ask([7], "damaged")
    assert real.ask([7, 8], None).tokens == real.wanted([7, 8])


def _unowned(running: Running) -> list[Path]:
    pages = running.party(1).pages
    return page_store.needless(pages.root, {owner.folder for owner in pages.owners("prefix")})


@pytest.mark.parametrize("step", ["write_new", "sync_folder"])
def test_a_full_disk_keeps_nothing_and_ends_no_other_session(
    real: Running, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root, done, before = real.party(1).pages.root, getattr(page_store, step), real.stored()
    calls = [0]

    def full(path: Path, *rest: Any) -> Any:
        if root in (path, *path.parents):
            calls[0] += 1
            if calls[0] == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done(path, *rest)

    monkeypatch.setattr(page_store, step, full)
    beside: list[list[int]] = []
    thread = threading.Thread(target=lambda: beside.append(real.ask([7, 8], None).tokens))
    thread.start()
    with pytest.raises(EnvironmentProblem, match=r"the store cannot be written \(No space left on device\): free"):
        real.add(f"full-{step}")
    thread.join(60)
    monkeypatch.undo()
    assert beside == [real.wanted([7, 8])]
    assert real.stored()[1] == before[1]
    assert _unowned(real) == []


def test_a_quota(tmp_path: Path) -> None:
    rows = 8 * BEHIND * 60 * 2
    running = Running(tmp_path, 2, limits={"max_prefix_bytes": rows})
    with running.deployment:
        running.share().add("first")
        with pytest.raises(
            ConfigurationError, match=f"take {8 * 60 * 2:,} bytes beside {rows:,} of others.*max_prefix_bytes"
        ):
            running.add("second", [1])


def test_values_that_left_their_range_keep_nothing(real: Running, tmp_path: Path) -> None:
    """Of a model of two layers: the first one's attention is what leaves it, and a prefix reads nothing behind the last."""
    random_checkpoints.save("gpt2", tmp_path)
    real.deployment.share(tmp_path, "deep")
    before = real.stored()
    with pytest.raises(RangeExceeded):
        real.add("flagged", model="deep", suite=SuiteSpec("masked", options={"residual": 4}))
    for _ in range(50):
        if not _unowned(real):
            break
        threading.Event().wait(0.1)
    assert real.stored() == before
    assert _unowned(real) == []
    assert real.ask([7, 8], None).tokens == real.wanted([7, 8])


@pytest.mark.parametrize("settings", [{"preprocessing": "on"}, {"limits": {"max_in_step": 3}}], ids=["ahead", "in-step"])
def test_sessions_ahead_of_their_values_and_in_step(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions_of_products: list[int] = []
    real = StepMember.together

    def together(member: StepMember, key: Hashable, rows: Tensor, products: Products) -> Tensor:
        def counted(asked: list[Tensor]) -> list[Tensor]:
            sessions_of_products.append(len(asked))
            return products(asked)

        return real(member, key, rows, counted)

    monkeypatch.setattr(StepMember, "together", together)
    monkeypatch.setattr(joint_products, "LEAST_ENTRIES", 1)
    running = Running(tmp_path, 2, **settings)
    with running.deployment:
        running.share().add("terms")
        found: dict[int, list[int]] = {}
        prompts = [PROMPT, [*PROMPT[:BEHIND], 5, 80], PROMPT]

        def one(number: int) -> None:
            found[number] = running.ask(prompts[number], "auto" if number else None).tokens

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert found == {number: running.wanted(prompt) for number, prompt in enumerate(prompts)}
        assert ("limits" in settings) == (max(sessions_of_products, default=0) > 1)
        assert running.ask(PROMPT[BEHIND:], "terms").tokens == running.wanted(PROMPT)
