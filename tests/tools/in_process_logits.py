"""Greedy generation on shares in one process, with the logits that each token was chosen from.

INSECURE FOR REAL DATA BY NATURE, as `launch.local.in_process`: one process makes and holds all shares.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from models.checkpoint import Checkpoint
from models.decoder import Decoder, load_weights
from models.generation import GenerationPlan, generate, token_indices
from mpc.channel import MemoryChannel
from mpc.fixed_point import decode, encode
from mpc.random import Prg, new_seed
from mpc.ring import reduce
from mpc.tape import DealerTape, PartyTape
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import OutputShare, Suite, Value

SHARED_BITS = 16

Outputs = tuple[list[OutputShare], list[OutputShare]]
"""A party's shares of the tokens and of the logits."""


class _Endpoint:
    """Keeps every token's share."""

    def __init__(self) -> None:
        self.shares: list[OutputShare] = []

    def emit(self, step: int, share: OutputShare) -> bool:
        """Go on."""
        self.shares.append(share)
        return True

    def next_token(self, step: int) -> None:
        """Not asked for."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Not shown."""


class _Weights:
    """Shares of the weights, each made once, when the first party asks, and freed when the last one has it."""

    def __init__(self, checkpoint: Checkpoint, parties: int) -> None:
        self._checkpoint = checkpoint
        self._parties = parties
        self._made: dict[str, dict[int, Tensor]] = {}
        self._lock = threading.Lock()

    def share(self, name: str, party: int, suite: Suite) -> Tensor:
        """int64 in Z_2^64, with the fraction bits that the suite wants."""
        wanted: int = getattr(suite, "weight_fraction_bits", SHARED_BITS)
        bits = min(wanted, SHARED_BITS)
        with self._lock:
            if name not in self._made:
                self._made[name] = dict(enumerate(_shares(self._checkpoint.weights[name], bits, self._parties)))
            found = self._made[name].pop(party)
        return found << (wanted - bits)


def _shares(values: Tensor, fraction_bits: int, parties: int) -> list[Tensor]:
    rest = encode(values, fraction_bits).clone()
    shares = [Prg(new_seed()).ring(values.shape) for _ in range(parties - 1)]
    for share in shares:
        rest -= share
    return [*shares, rest]


def _opened(shares: Sequence[OutputShare]) -> Tensor:
    total = torch.stack([share.share for share in shares]).sum(0)
    return decode(reduce(total, shares[0].bits), shares[0].fraction_bits, shares[0].bits)


def generate_with_logits(
    checkpoint: Checkpoint, ids: Sequence[int], plan: GenerationPlan, spec: SuiteSpec, parties: int
) -> tuple[list[int], Tensor]:
    """All tokens of the plan by the secure arg-max, and float64 logits [tokens, V]."""
    architecture = checkpoint.architecture
    weights = _Weights(checkpoint, parties)
    prompts = _shares(token_indices(ids, architecture.vocabulary), 0, parties)

    def program(suite: Suite, index: int | None) -> Outputs:
        logits: list[OutputShare] = []

        def probe(name: str, value: Value) -> None:
            if name == "logits":
                logits.append(suite.output(value))

        def own(name: str) -> Tensor | None:
            return None if index is None else weights.share(name, index, suite)

        loaded = suite.run(load_weights(suite, architecture, own))
        endpoint, prompt = _Endpoint(), None if index is None else prompts[index]
        with torch.inference_mode():
            suite.run(generate(suite, Decoder(suite, architecture, loaded, probe=probe), plan, prompt, endpoint))
        return endpoint.shares, logits

    def party(channel: MemoryChannel, tape: PartyTape) -> Outputs:
        suite = secure_suite(spec, parties=parties, tape=tape, channel=channel)
        return program(suite, channel.party)

    def dealer(tape: DealerTape) -> None:
        program(secure_suite(spec, parties=parties, tape=tape, channel=None), None)

    outputs, _ = run_in_process(parties, party, dealer)
    tokens = [round(_opened(shares).item()) for shares in zip(*(tokens for tokens, _ in outputs), strict=True)]
    rows = [_opened(shares) for shares in zip(*(logits for _, logits in outputs), strict=True)]
    return tokens, torch.cat(rows)
