"""A party that is out of tape waits for one, where its configuration says so."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import load_checkpoint, read_architecture
from models.generation import GenerationPlan, generate_plain
from mpc.errors import ConfigurationError, TapeError
from parties.tapes.deal import DealOrder, DealSpec, deal
from protocols.registry import SuiteSpec
from tests.parties import tape_folders as tapes
from tests.parties.conftest import VOCABULARY
from tests.parties.deployment import Deployment
from tests.parties.tape_folders import PROMPT
from tests.parties.tapes.test_sessions import start
from tests.parties.toy import Toy, expected


def test_waiting_for_tapes(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    deployment = Deployment(tmp_path, 2, toy.program, connect_seconds=1)
    out, later = tmp_path / "out", tmp_path / "later"
    try:
        start(deployment, out, when_tape_is_out="wait", tape_wait_seconds=60)
        deployment.share(checkpoint)
        tapes.deal_toy(deployment, checkpoint, later, toy)
        stages: list[str] = []

        def on_progress(stage: str, done: int, total: int) -> None:
            if "waiting for a tape" in stage and not any("waiting for a tape" in before for before in stages):
                for name in reversed(deployment.names):
                    shutil.copytree(later / name, out / name, dirs_exist_ok=True)
            stages.append(stage)

        result = deployment.client().ask(PROMPT, 3, stop_ids=(), on_progress=on_progress)
        assert result.tokens == expected(PROMPT, 3, VOCABULARY)
        waited = [stage for stage in stages if stage.startswith("waiting for a tape: party")]
        assert "has no tape for a prompt of 5 tokens and 3 new tokens" in waited[0]
    finally:
        deployment.stop()


def test_waiting_for_tapes_ends(tmp_path: Path, checkpoint: Path) -> None:
    deployment = Deployment(tmp_path, 2, Toy().program)
    try:
        start(deployment, tmp_path / "out", when_tape_is_out="wait", tape_wait_seconds=1.2)
        deployment.share(checkpoint)
        began = time.monotonic()
        with pytest.raises(TapeError, match=r"party. has no tape for a prompt of 5 tokens .* \(waited 1\.2 s\)"):
            deployment.client().ask(PROMPT, 3, stop_ids=())
        assert 1 < time.monotonic() - began < 10
    finally:
        deployment.stop()


def dealt_live(dealer: Any) -> list[str]:
    """Return a list that grows with each session that the running dealer holds."""
    opened: list[str] = []
    hold = dealer.hold

    def noted(*rest: Any) -> Any:
        opened.append("dealt")
        return hold(*rest)

    dealer.hold = noted
    return opened


def test_the_running_dealer_instead(tmp_path: Path, checkpoint: Path) -> None:
    """Tapes where they serve; for other lengths, and once they are used up, the dealer: each session answers."""
    toy = Toy()
    deployment = Deployment(tmp_path, 2, toy.program)
    out = tmp_path / "out"
    try:
        deployment.start_one("dealer")
        start(deployment, out, when_tape_is_out="dealer")
        deployment.share(checkpoint)
        tapes.deal_toy(deployment, checkpoint, tmp_path / "later", toy)
        for name in deployment.names:
            shutil.copytree(tmp_path / "later" / name, out / name, dirs_exist_ok=True)
        client, dealer = deployment.client(), deployment.servers["dealer"]
        opened = dealt_live(dealer)
        for prompt, live in ((PROMPT, False), (PROMPT[:-1], True), (PROMPT, None)):
            before = len(opened)
            result = client.ask(prompt, 3, stop_ids=())
            assert result.tokens == expected(prompt, 3, VOCABULARY)
            assert live is None or (len(opened) > before) == live
        for _ in range(3):
            assert client.ask(PROMPT, 3, stop_ids=()).tokens == expected(PROMPT, 3, VOCABULARY)
        assert opened
    finally:
        deployment.stop()


def test_all_parties_must_be_willing(tmp_path: Path, checkpoint: Path) -> None:
    deployment = Deployment(tmp_path, 2, Toy().program)
    out = tmp_path / "out"
    try:
        deployment.start_one("dealer")
        start(deployment, out, "party0", when_tape_is_out="dealer")
        start(deployment, out, "party1")
        deployment.share(checkpoint)
        with pytest.raises(TapeError, match=r"party1 has no tape for a prompt of 5 tokens"):
            deployment.client().ask(PROMPT, 3, stop_ids=())
        tapes.deal_toy(deployment, checkpoint, tmp_path / "later")
        shutil.copytree(tmp_path / "later" / "party1", out / "party1", dirs_exist_ok=True)
        with pytest.raises(TapeError, match=r"party0 found no tape that all parties have and asks the running dealer"):
            deployment.client().ask(PROMPT, 3, stop_ids=())
    finally:
        deployment.stop()


def test_tapes_of_a_bucket_serve_every_prompt_that_it_holds(tmp_path: Path, checkpoint: Path) -> None:
    """By tape, then by the running dealer: the answers of the prompts alone, and the same costs for all of them."""
    deployment, out, plain = Deployment(tmp_path, 2), tmp_path / "out", load_checkpoint(checkpoint)
    try:
        deployment.start_one("dealer")
        start(deployment, out, when_tape_is_out="dealer")
        deployment.share(checkpoint)
        spec = DealSpec([8], 2, 2, SuiteSpec("masked"), padded=True)
        order = DealOrder(deployment.config("dealer", "dealer"), read_architecture(checkpoint), spec)
        deal(order, tmp_path / "later")
        for name in deployment.names:
            shutil.copytree(tmp_path / "later" / name, out / name, dirs_exist_ok=True)
        client, dealer = deployment.client(), deployment.servers["dealer"]
        opened = dealt_live(dealer)
        seen = []
        for prompt, live in (([3, 17], False), ([3, 17, 8, 30, 5, 1, 1, 2], False), ([3, 17, 8, 30, 5], True)):
            result = client.ask(prompt, 2, suite="masked", stop_ids=(), prompt_buckets=(8, 16))
            wanted = generate_plain(plain, prompt, GenerationPlan(len(prompt), 2))
            assert result.tokens[: len(wanted)] == wanted
            assert bool(opened) == live
            stages = [cost["stages"] for _, cost in sorted(result.costs.items())]
            counted = [(n, c["rounds"], c["bytes_sent"]) for one in stages for n, c in sorted(one.items())]
            seen.append([one for one in counted if one[0].startswith(("prefill", "token"))])
        assert seen[0] == seen[1] == seen[2]
        with pytest.raises(ConfigurationError, match="longer than the largest of prompt_buckets = 8, 16"):
            client.ask([1] * 17, 2, prompt_buckets=(8, 16))
    finally:
        deployment.stop()
