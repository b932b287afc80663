"""Generating tokens: the program that compute parties, dealer and the plain reference all run, and that reference.

What leaves the program goes to the client alone, as output shares: each token's index ("greedy", "sample") or each
step's logits ("logits"). Between steps the chosen token stays inside as a secret one-hot row, so in "greedy" and "sample"
the client is not asked for anything after its prompt. The noise of a sample is dealt.

With a draft ("greedy" only, see `models.drafting`) the client shares the indices of each step's rows, learns what is chosen
after each of them, and says how many rows stay: that number is public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, get_args

import torch
from torch import Tensor

from models.architecture import Architecture
from models.architectures import AnyArchitecture, decoder_of, without_encoder
from models.cache import CachePolicy, KVCache
from models.checkpoint import Checkpoint
from models.chunks import ChunkPlan
from models.decoder import Decoder, Probe
from models.drafting import DraftPlan, Guess, drafted_rows, rows_that_stay
from models.loaded import load_weights
from models.outputs import Decoding
from models.padding import check_alone, check_experts, check_padded, padded
from models.policies import parse
from models.prefill import prefill
from models.prefix_rows import check_behind
from mpc.errors import ConfigurationError
from protocols.gumbel import check_temperature, gumbel
from protocols.plain.suite import PlainSuite
from protocols.suite import OutputShare, Suite, Value


@dataclass(frozen=True)
class GenerationPlan:
    """What is public about a generation: what all parties agree on. Raises `ConfigurationError` naming the argument and its
    value.

    prompt_tokens: length of the prompt. new_tokens: the most tokens to generate. decoding: "greedy": secure argmax;
    "sample": argmax of logits plus dealt noise times `temperature`, above 0 and at most 100 (None for the others): a sample
    of softmax(logits / temperature); "logits": the client learns logits and chooses itself. policy: the cache policy's text,
    see `models.policies.registry`. draft: of the tokens that the client guesses, None without. behind: tokens of the
    registered prefix that the prompt continues, 0 without one; chunks: of documents between it and the prompt. padded:
    whether the prompt's first tokens may be padding, how many is secret (`models.padding`).
    """

    prompt_tokens: int
    new_tokens: int
    decoding: Decoding = "greedy"
    policy: str = "full"
    temperature: float | None = None
    draft: DraftPlan | None = None
    behind: int = 0
    chunks: ChunkPlan | None = None
    padded: bool = False

    def __post_init__(self) -> None:
        check_positive("prompt_tokens", self.prompt_tokens)
        check_positive("new_tokens", self.new_tokens)
        check_decoding(self.decoding)
        check_agreed_temperature(self.decoding, self.temperature)
        policy = parse(self.policy)
        if self.draft is not None:
            check_verifiable(self.decoding, policy, self.draft)
        if self.padded:
            check_alone(policy.spec, {"draft": self.draft, "prefix": self.behind, "chunks": self.chunks})

    @property
    def prompt_shape(self) -> tuple[int, ...]:
        """Shape of what the client shares: which candidate each slot reads, where that is secret, or how many tokens are
        padding, and its prompt."""
        return (self._apart + self.prompt_tokens,)

    @property
    def _apart(self) -> int:
        """Numbers that are shared in front of the prompt's tokens."""
        return len(self.chunks.lengths) if self.chunks is not None and self.chunks.among else int(self.padded)

    @property
    def computed(self) -> int:
        """Tokens that a session computes before its first new one."""
        return self.prompt_tokens + (0 if self.chunks is None else self.chunks.repaired)

    def check(self, described: AnyArchitecture) -> None:
        """Raise `ConfigurationError` unless the model is a decoder, has the positions and suits the policy; the last token
        needs none."""
        architecture = decoder_of(described, f"decoding '{self.decoding}'")
        policy = parse(self.policy)
        if policy.spec != "full":
            without_encoder(architecture, f"policy {policy.spec}")
        before = self.behind + (0 if self.chunks is None else self.chunks.tokens)
        policy.check(architecture, before + self.prompt_tokens)
        architecture.check_room(self.prompt_tokens, self.new_tokens, before)
        if before:
            check_behind(policy, architecture, before, self.prompt_tokens)
        if self.chunks is not None:
            self.chunks.check(policy, architecture)
        if self.padded:
            check_padded(architecture, self.prompt_tokens, self.new_tokens)


def check_positive(name: str, value: object) -> None:
    """Raise `ConfigurationError`, naming the argument, unless the value is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} must be a positive integer, got {value!r}")


def check_decoding(decoding: str) -> None:
    """Raise `ConfigurationError` for an unknown decoding."""
    if decoding not in get_args(Decoding):
        raise ConfigurationError(f"decoding = {decoding!r}; known: {', '.join(get_args(Decoding))}")


def check_agreed_temperature(decoding: str, temperature: float | None) -> None:
    """Raise `ConfigurationError` unless `decoding` is "sample" with a temperature that no ring wraps at, or another
    without."""
    if decoding == "sample":
        if temperature is None:
            raise ConfigurationError("decoding 'sample' needs a temperature, above 0 and at most 100")
        check_temperature(temperature)
    elif temperature is not None:
        raise ConfigurationError(f"temperature = {temperature:g} goes with decoding 'sample', not with '{decoding}'")


def check_verifiable(decoding: str, policy: CachePolicy, draft: DraftPlan) -> None:
    """Raise `ConfigurationError` unless drafted tokens can be verified with this decoding and this policy."""
    if decoding != "greedy":
        raise ConfigurationError(
            f"decoding = '{decoding}' cannot verify drafted tokens, which are compared with the most likely ones; use "
            "decoding 'greedy' without a temperature, or draft 'off'"
        )
    if not policy.verifies(draft.tokens + 1):
        raise ConfigurationError(
            f"policy {policy.spec} cannot verify {draft.tokens} drafted tokens a step: what it does after a token cannot be "
            "taken back, or a row would need what its own step leaves; use draft 'off', or a policy such as full, snapkv, "
            "streaming-llm, or mpcache with a window larger than the number of guesses"
        )


class Endpoint(Protocol):
    """Where a party's program meets the client (and the person who watches)."""

    def emit(self, step: int, share: OutputShare) -> bool:
        """Hand out this party's share of output `step`: a token's index [1] ("greedy", "sample"), its logits [1, V]
        ("logits"), or the indices [n] chosen after each row of a drafted step, with the flags of what left its range on the
        way to it and, with the first one, how many choices of an expert the prompt's mixtures dropped.

        False ends the generation; all parties and the dealer must return the same.
        """
        ...

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        """Return this party's int64 share [count] of the indices that the client shares after output `step`: of the token
        that it chose ("logits"), or of a drafted step's rows; None at the dealer."""
        ...

    def kept(self, step: int, rows: int) -> int:
        """Return how many of the drafted rows of output `step` stay, 1 to `rows`. Public: the client says it, and all
        parties and the dealer must return the same."""
        ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """Hear of progress: stage "prefill" in layers, stage "tokens" in tokens."""
        ...


async def generate(
    suite: Suite,
    decoder: Decoder,
    plan: GenerationPlan,
    prompt_share: Tensor | None,
    endpoint: Endpoint,
) -> int:
    """Run the plan; returns the number of tokens produced (public).

    prompt_share: this party's int64 share of the token indices of the prompt behind what the plan's chunks are given
    (`ChunkPlan.given`), or behind the number of tokens that are padding; None at the dealer.

    Ledger stages: "prefill" (the prompt up to its logits), then "token N" for what each token takes, with a draft for what
    the step takes that begins with token N.
    """
    architecture = decoder.architecture
    plan.check(architecture)
    vocabulary = architecture.vocabulary
    apart = plan.chunks.given if plan.chunks is not None and plan.chunks.among else int(plan.padded)
    before, own = (None, None) if prompt_share is None else (prompt_share[:apart], prompt_share[apart:])
    prompt = suite.indices(plan.prompt_tokens if apart else plan.computed, own, vocabulary)
    released = plan.decoding == "logits"
    cache = decoder.begun(plan.behind, plan.chunks, plan.prompt_tokens, before)
    if plan.padded:
        check_experts(suite, architecture)
        cache.prompt.start = suite.indices(1, before, plan.prompt_tokens)

    def progress(done: int, total: int) -> None:
        endpoint.progress("prefill", done, total)

    with suite.ledger.timed("prefill"):
        logits = await prefill(decoder, cache, prompt, progress, released)
    chosen: Value | None = None
    for step in range(plan.new_tokens):
        cache.enter_token(last=step + 1 == plan.new_tokens)
        with suite.ledger.timed(f"token {step}"):
            if chosen is not None:
                logits = await decoder.forward(chosen, cache, True, whole=released)
            chosen, share = await choice(suite, logits, plan.decoding, plan.temperature, architecture.logit_cap)
            if step == 0 and cache.dropped is not None:
                share = replace(share, dropped=suite.output(cache.dropped))
        more = endpoint.emit(step, share)
        endpoint.progress("tokens", step + 1, plan.new_tokens)
        if not more or step + 1 == plan.new_tokens:
            return step + 1
        if plan.draft is not None:
            return await _drafted(decoder, cache, plan, plan.draft, endpoint)
        if plan.decoding == "logits":
            chosen = suite.indices(1, endpoint.next_tokens(step, 1), vocabulary)
    raise AssertionError("unreachable: a plan has at least one token")


async def _drafted(decoder: Decoder, cache: KVCache, plan: GenerationPlan, draft: DraftPlan, endpoint: Endpoint) -> int:
    """Generate what follows the first token, in steps of several rows; returns the number of all tokens (public)."""
    suite, vocabulary = decoder.suite, decoder.architecture.vocabulary
    produced, step = 1, 0
    while True:
        rows = draft.rows(plan.new_tokens - produced)
        inputs = suite.indices(rows, endpoint.next_tokens(step, rows), vocabulary)
        step += 1
        cache.enter_token(last=produced + 1 == plan.new_tokens)
        with suite.ledger.timed(f"token {produced}"):
            logits = await decoder.verify(inputs, cache)
            _, share = await choice(suite, logits, plan.decoding, plan.temperature, decoder.architecture.logit_cap)
        more = endpoint.emit(step, share)
        kept = endpoint.kept(step, rows) if more and rows > 1 else 1
        produced += kept
        endpoint.progress("tokens", produced, plan.new_tokens)
        if not more or produced == plan.new_tokens:
            return produced
        with suite.ledger.timed(f"token {produced}"):
            await decoder.keep(cache, kept)


async def choice(
    suite: Suite, logits: Value, decoding: Decoding, temperature: float | None, cap: float | None = None
) -> tuple[Value | None, OutputShare]:
    """Return what follows from logits [n, V]: the next token after each row as a secret one-hot row [n, V], None where the
    client chooses, and what goes to the client, with its range flags: a share of their indices [n], or of the logits.

    cap: `Architecture.logit_cap`. It changes no arg-max, so only a sample needs it; who sees logits caps them (`capped`)."""
    if decoding == "logits":
        chosen, share = None, suite.output(await suite.released(logits))
    else:
        if temperature is not None:
            logits = logits if cap is None else await suite.soft_cap(logits, cap)
            logits = await suite.perturbed(logits, temperature)
        chosen = await suite.argmax(logits)
        share = suite.output((chosen * _indices(logits.shape[-1])).sum(-1))
    return chosen, replace(share, flags=suite.flags())


@cache
def _indices(vocabulary: int) -> Tensor:
    return torch.arange(vocabulary)


def capped(architecture: Architecture, logits: Tensor) -> Tensor:
    """Return logits [..., V] in the clear as the model has them: behind its soft cap."""
    cap = architecture.logit_cap
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_indices(ids: Sequence[int], vocabulary: int) -> Tensor:
    """Return a prompt's indices, int64 [T]. Raises `ConfigurationError` naming the place, not the (secret) token.

    >>> token_indices([3, 1], vocabulary=5)
    tensor([3, 1])
    """
    if not len(ids):
        raise ConfigurationError("the prompt is empty; give at least one token")
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise ConfigurationError(
                f"prompt token number {place + 1} lies outside the model's vocabulary of {vocabulary} tokens; "
                "tokenizer and model must belong together"
            )
    return torch.tensor(list(ids), dtype=torch.int64)


def prompt_indices(ids: Sequence[int], plan: GenerationPlan, vocabulary: int) -> Tensor:
    """Return what a client shares of a prompt without chunks, int64 `plan.prompt_shape`. Raises as `token_indices` does."""
    indices = token_indices(ids, vocabulary)
    return padded(ids, plan.prompt_tokens) if plan.padded else indices


class PlainModel:
    """A checkpoint loaded into the suite `plain`: the reference for what parties compute, on CPU or CUDA. noise(shape):
    where a sample's Gumbel noise comes from."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        policy: CachePolicy | None = None,
        noise: Callable[[Sequence[int]], Tensor] = gumbel,
    ) -> None:
        self.architecture = checkpoint.architecture
        self.suite = PlainSuite(dtype, device, noise=noise)
        self.policy = policy
        self.weights: dict[str, Value] = self.suite.run(
            load_weights(self.suite, self.architecture, checkpoint.weights.__getitem__)
        )

    def decoder(self, probe: Probe | None = None, policy: CachePolicy | None = None) -> Decoder:
        """Return a decoder over the loaded weights."""
        return Decoder(self.suite, self.architecture, self.weights, self.policy or policy, probe)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], probe: Probe | None = None) -> Tensor:
        """Return the logits after every token of a prompt, processed in one batch: [T, V]."""
        decoder = self.decoder(probe)
        vocabulary = self.architecture.vocabulary
        prompt = self.suite.indices(len(ids), token_indices(ids, vocabulary), vocabulary)
        value = self.suite.run(decoder.forward(prompt, decoder.new_cache()))
        return capped(self.architecture, self.suite.output(value).share)

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        plan: GenerationPlan,
        probe: Probe | None = None,
        suite: Suite | None = None,
        guess: Guess = lambda text, count: (),
    ) -> list[int]:
        """Return generated token ids, up to and with the first end-of-text token. suite: one around the model's own,
        which sees what is asked of it. guess: of the tokens that follow, where the plan has a draft."""
        if len(prompt_ids) != plan.prompt_tokens and not (plan.padded and len(prompt_ids) < plan.prompt_tokens):
            raise ConfigurationError(f"prompt_tokens = {plan.prompt_tokens}, but the prompt has {len(prompt_ids)} tokens")
        indices = prompt_indices(prompt_ids, plan, self.architecture.vocabulary)
        endpoint = _Collector(self.architecture, prompt_ids, guess)
        asked = self.suite if suite is None else suite
        decoder = Decoder(asked, self.architecture, self.weights, self.policy or parse(plan.policy), probe)
        self.suite.run(generate(asked, decoder, plan, indices, endpoint))
        return endpoint.ids


class _Collector:
    """The client of the plain reference; in decoding "logits" it takes the most likely token."""

    def __init__(self, architecture: Architecture, prompt_ids: Sequence[int], guess: Guess) -> None:
        self.ids: list[int] = []
        self._architecture = architecture
        self._prompt = list(prompt_ids)
        self._guess = guess
        self._rows = [0]
        self._kept = 1

    def emit(self, step: int, share: OutputShare) -> bool:
        chosen = share.share.argmax(-1) if share.share.dim() == 2 else share.share.round()
        choices = [int(token) for token in chosen.tolist()]
        self._kept = rows_that_stay(self._rows, choices)
        for token in choices[: self._kept]:
            self.ids.append(token)
            if token in self._architecture.eos:
                return False
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        self._rows = drafted_rows([*self._prompt, *self.ids], self._guess, count)
        return token_indices(self._rows, self._architecture.vocabulary)

    def kept(self, step: int, rows: int) -> int:
        return self._kept

    def progress(self, stage: str, done: int, total: int) -> None:
        pass


def generate_plain(
    checkpoint: Checkpoint, prompt_ids: Sequence[int], plan: GenerationPlan, dtype: torch.dtype = torch.float32
) -> list[int]:
    """Return the token ids that are generated in plaintext; see `PlainModel`."""
    return PlainModel(checkpoint, dtype).generate(prompt_ids, plan)


def plain_logits(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    probe: Probe | None = None,
) -> Tensor:
    """Return plaintext logits [T, V] after every token; see `PlainModel.logits`."""
    return PlainModel(checkpoint, dtype, device).logits(ids, probe)
