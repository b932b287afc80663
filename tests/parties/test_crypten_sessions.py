"""The real program and suite through real connections: the same tokens as in plaintext, costs as counted on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, generate_plain, plain_logits
from parties.transport.peer_stream import PeerStream
from protocols import gumbel
from tests.parties.conftest import VOCABULARY
from tests.parties.deployment import Deployment

PROMPT = [3, 17, 8, 30, 5]
LOGIT_TOLERANCE = 0.02  # 16 fraction bits through one layer of a model with logits of size 5


@pytest.fixture(scope="module", params=[2, 3])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("real"), request.param, deadline_seconds=20, bulk="required") as running:
        running.share(checkpoint)
        yield running


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


def test_greedy_equals_plain(deployment: Deployment, plain: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []  # by several threads of each role
    drain = PeerStream.drain

    def count(self: PeerStream, outbox: Any) -> Iterator[Any]:
        for message in drain(self, outbox):
            if message.WhichOneof("content") == "frame":
                sent.append((self.session.role, len(message.frame.payload)))
            yield message

    monkeypatch.setattr(PeerStream, "drain", count)
    for _ in range(2):  # the second session uses the first one's masked weights
        sent.clear()
        result = deployment.client().ask(PROMPT, 2, stop_ids=())
        tokens = generate_plain(plain, PROMPT, GenerationPlan(len(PROMPT), 2))
        assert result.tokens[: len(tokens)] == tokens
        assert len(tokens) > 1
        counted = {name: sum(size for role, size in sent if role == name) for name in deployment.names}
        assert {name: cost["total"]["bytes_sent"] for name, cost in result.costs.items()} == counted


@pytest.mark.parametrize("deployment", [3], indirect=True)
def test_logits_equal_plain(deployment: Deployment, plain: Checkpoint) -> None:
    result = deployment.client().ask(PROMPT, 2, decoding="logits", stop_ids=())
    assert result.logits is not None
    assert result.logits.shape == (2, VOCABULARY)
    wanted = plain_logits(plain, [*PROMPT, result.tokens[0]])[-2:]
    assert wanted.abs().max() > 1
    assert (result.logits - wanted).abs().max() < LOGIT_TOLERANCE


@pytest.mark.parametrize("deployment", [2], indirect=True)
def test_sampling_equals_plain_with_the_same_noise(
    deployment: Deployment, plain: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dealer's noise, caught where it is drawn, one row a token."""
    temperature, noise = 3.0, list[Tensor]()

    def caught(shape: Any) -> Tensor:
        noise.append(draw(shape))
        return noise[-1]

    draw = gumbel.gumbel
    monkeypatch.setattr(gumbel, "gumbel", caught)
    result = deployment.client().ask(PROMPT, 2, decoding="sample", temperature=temperature, stop_ids=())
    scaled = (torch.cat(noise) * temperature).to(torch.float32)
    assert tuple(scaled.shape) == (2, VOCABULARY)
    tokens = []
    for step in range(2):
        tokens.append(int((plain_logits(plain, [*PROMPT, *tokens])[-1] + scaled[step]).argmax()))
    assert result.tokens == tokens
