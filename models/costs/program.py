"""The program of a benchmark and of an estimate: load weights, fill a cache, run a step.

Compute parties, dealer, the plaintext reference and the estimate run this same code, so what is predicted and what is
measured is the same thing. A step is what `models.generation` does for one token: the decoder, the secure argmax and the
output share of its index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from models.architecture import Architecture
from models.cache import KVCache
from models.chunk_choice import load_blocks
from models.chunks import ChunkPlan
from models.decoder import Decoder
from models.description import Description
from models.encoder import Encoder
from models.encoding import outputs
from models.generation import choice
from models.loaded import load_weights
from models.observation import Observation, Seen
from models.outputs import Decoding, Output
from models.padding import Padding
from models.policies import parse
from models.prefill import prefill
from models.prefix_scores import scores_of
from models.prefixes import PrefixPlan, forget, registered
from protocols.suite import OutputShare, Suite, Value

CHOICE = "choice"
MASS = "attention mass"
WARM_UP = "warm-up"
CACHE = "cache"


def by_parties(cached: int, tokens: int) -> bool:
    """Whether the parties chose a step's token, as its one-hot row, and not the client, by its index."""
    return cached > 0 and tokens == 1


class Source(Protocol):
    """Where a role's inputs come from: a party's shares, real values for `plain`, None at the dealer and in estimates."""

    def weight(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor | None: ...

    def cached(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor | None: ...

    def tokens(self, suite: Suite, count: int, chosen: bool) -> Tensor | None: ...


class NoInputs:
    """The dealer's and the estimate's source."""

    def weight(self, suite: Suite, name: str, shape: Sequence[int]) -> None:
        pass

    def cached(self, suite: Suite, name: str, shape: Sequence[int]) -> None:
        pass

    def tokens(self, suite: Suite, count: int, chosen: bool) -> None:
        pass


async def load(suite: Suite, architecture: Description, source: Source) -> dict[str, Value]:
    """Load all weights, as a session does."""
    shapes = architecture.weight_shapes()
    return await load_weights(suite, architecture, lambda name: source.weight(suite, name, shapes[name]))


async def load_before(
    suite: Suite, architecture: Architecture, behind: int, chunks: ChunkPlan | None, policy: str = "full"
) -> dict[str, Value]:
    """Load the rows of a registered prefix and of chunks, as a session does, where they have no content."""
    return await load_blocks(suite, architecture, behind, chunks, lambda number, name: None, scores_of(parse(policy)))


async def fill(
    decoder: Decoder, cached: int, source: Source, agree: bool = True, read: int = 0, padded: bool = False
) -> KVCache:
    """Return a cache that holds `cached` tokens, as a prompt would leave it. Recorded under the stage "cache".

    A layer with a sliding window holds its window. A policy that works on the prompt's cache does so, with the attention
    mass that `source` has. agree: do here what parties do once a session, when they first hand out a share. read: tokens of
    the prompt that an encoder has read; the cached ones are then the answer's. padded: the prompt began with padding.
    """
    suite, cache = decoder.suite, decoder.new_cache()
    if padded and cached:
        await _fill_padding(decoder, cache, cached, source)
    if agree:
        with suite.ledger.timed(CACHE):
            suite.output(suite.input((1,), source.cached(suite, "agreement", (1,)), suite.fraction_bits))
    a = decoder.architecture
    for layer in range(a.encoder_layers, a.layers if cached else 0):
        cache.enter(layer)
        await fill_layer(decoder, cache, layer, cached, source)
        if a.encoder is not None:
            await _fill_cross(decoder, cache, layer, read, source)
    cache.seen = cached
    return cache


async def _fill_padding(decoder: Decoder, cache: KVCache, cached: int, source: Source) -> None:
    """Let all cached tokens be a prompt that began with padding."""
    suite = decoder.suite
    with suite.ledger.timed(CACHE):
        start = suite.indices(1, source.cached(suite, "padding", (1,)), cached)
        learned = decoder.architecture.learned_positions
        cache.prompt.padding = await Padding.of(suite, start, cached, learned)
        if learned:
            await cache.prompt.padding.places(suite, decoder.positions, 0, cached)


async def fill_layer(decoder: Decoder, cache: KVCache, layer: int, cached: int, source: Source) -> None:
    """Fill one layer as `fill` does; layers in order, `cache.seen` is set after the last one."""
    suite, a, policy, entry = decoder.suite, decoder.architecture, decoder.policy, cache.layers[layer]

    def value(name: str, shape: tuple[int, ...]) -> Value:
        bound = max(2.0, a.heads * kept) if name.endswith(MASS) else None  # what there is to receive
        return suite.input(shape, source.cached(suite, name, shape), suite.fraction_bits, bound)

    kept = cached if entry.window is None else min(cached, entry.window)
    if layer == a.encoder_layers:
        policy.check(a, cached + policy.probes)
    cache.prompt_tokens = cached if a.encoder is None else 0
    with suite.ledger.timed(CACHE):
        shape = (a.kv_heads, kept, a.head_channels)
        await cache.append(suite, layer, value(f"layer {layer} keys", shape), value(f"layer {layer} values", shape))
        asked = policy.observation(kept, layer)
        seen = told(a, asked, kept, lambda name, shape: value(f"layer {layer} {name}", shape))
        if noted := min(policy.noted_queries(kept, layer), kept):
            queries = (a.kv_heads, a.group * noted, a.head_channels)
            entry.queries = await suite.mask_queries(value(f"layer {layer} queries", queries))
        await policy.after_prefill(suite, cache, layer, seen)
        suite.flags()  # taken as with an output, so that a step begins as a session's next one does


async def _fill_cross(decoder: Decoder, cache: KVCache, layer: int, read: int, source: Source) -> None:
    """Fill one layer's keys and values of what an encoder read."""
    suite, a = decoder.suite, decoder.architecture
    shape = (a.kv_heads, read, a.head_channels)
    with suite.ledger.timed(CACHE):
        given = [
            suite.input(shape, source.cached(suite, f"layer {layer} {name}", shape), suite.fraction_bits)
            for name in ("prompt keys", "prompt values")
        ]
        cache.prompt.keys_and_values[layer] = await suite.together(
            suite.mask_for_cache(given[0]), suite.mask_for_cache(given[1], "value")
        )
        suite.flags()


def told(a: Architecture, asked: Observation, cached: int, value: Callable[[str, tuple[int, ...]], Value]) -> Seen:
    """Return what a policy is told of a prompt of `cached` tokens, in values that are asked for by name and shape."""
    width = (a.heads + 2 * a.kv_heads) * a.head_channels
    features = value("features", (cached, width)) if asked.features else None
    if not asked.queries:
        return Seen(features=features)
    shape = (asked.sums(a.heads, a.kv_heads), cached)
    squares = value("squared attention", shape) if asked.squares else None
    queries = 1 if asked.each or asked.alone else min(asked.queries, cached)
    heads = asked.heads_of_sum(a.heads, a.kv_heads)
    found = Seen(value(MASS, shape), queries, heads, squares, features, each=asked.each)
    late = value(f"late {MASS}", shape) if asked.late else None
    return replace(found, late=late, late_queries=min(asked.late, cached))


async def encoding_step(
    encoder: Encoder, sizes: tuple[int, int], output: Output, given: Tensor | None, name: str
) -> OutputShare:
    """Return the output share of an encoder's pass over a batch of texts; arguments as in `models.encoding.outputs`.
    Recorded under stage `name`, its parts as in `Encoder.forward`."""
    suite = encoder.suite
    with suite.ledger.timed(name):
        found = await outputs(suite, encoder, sizes, output, given)
        with suite.ledger.timed(CHOICE):
            return replace(suite.output(found), flags=suite.flags())


async def registering_step(decoder: Decoder, plan: PrefixPlan, name: str) -> None:
    """Run what registering a prefix takes, without content. Recorded under stage `name`."""
    with decoder.suite.ledger.timed(name):
        await registered(decoder, plan, None, forget)


@dataclass(frozen=True)
class StepPlan:
    """One step; public. tokens: that it processes. decoding, temperature, padded: as in `GenerationPlan`. drafted: whether
    the tokens are rows of a drafted step, each of which has a choice of its own."""

    tokens: int = 1
    decoding: Decoding = "greedy"
    temperature: float | None = None
    drafted: bool = False
    padded: bool = False


async def step(
    decoder: Decoder, cache: KVCache, plan: StepPlan, given: Tensor | None, name: str
) -> tuple[Value, OutputShare]:
    """Return the logits [1, V] after the plan's tokens, and the output share, by default of the most likely one's index; of
    a drafted step those after each token, [n, V]. How many of its rows stay is for the caller to say (`Decoder.keep`).
    With a cache that is empty but for a registered prefix they are a prompt, which comes in the policy's batches.

    given: this role's part of the tokens, as `Source.tokens` gives it; see `by_parties`. Recorded under stage `name`, its
    parts as in `Decoder.forward`, what follows from logits under "choice".
    """
    suite, vocabulary = decoder.suite, decoder.architecture.vocabulary
    shown = plan.decoding == "logits"
    with suite.ledger.timed(name):
        if by_parties(cache.seen if cache.seen > cache.behind else 0, plan.tokens) and not shown and not plan.drafted:
            inputs = suite.input((plan.tokens, vocabulary), given, 0)
        else:
            inputs = suite.indices(plan.tokens, given, vocabulary)
        if plan.drafted:
            logits = await decoder.verify(inputs, cache)
        elif cache.seen > cache.behind:
            logits = await decoder.forward(inputs, cache, last_only=True, whole=shown)
        else:
            if plan.padded:
                cache.prompt.start = suite.indices(1, None, plan.tokens)
            logits = await prefill(decoder, cache, inputs, whole=shown)
        with suite.ledger.timed(CHOICE):
            _, share = await choice(suite, logits, plan.decoding, plan.temperature, decoder.architecture.logit_cap)
    return logits, share
