"""The transformer decoder, written once against `protocols.suite.Suite`.

Compute parties, dealer and the plain reference run this very code. It looks at public shapes only: every branch depends on
the architecture, on token counts and on the cache policy, never on a value.

Axis names as in `protocols.suite`: T tokens, S cached tokens, D width, H query heads, G key/value heads, R = H / G,
C head channels, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from models.architecture import Architecture
from models.attention import Angles, Attention, Rows
from models.cache import Batch, CachePolicy, KVCache
from models.chunk_choice import chosen_chunks
from models.chunks import ChunkPlan
from models.cross_attention import CrossAttention
from models.experts import Mixture
from models.feed_forward import FeedForward
from models.loaded import check_weights, linear_layer
from models.padding import Padding
from models.policies.full import FullCache
from models.prefix_rows import begin_behind
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.suite import Linear, Norm, Suite, Value

Probe = Callable[[str, Value], None]
"""Sees intermediate values by name: "embedding", "layer N/attention", "layer N/cross" (to what an encoder read), "layer
N/mlp" (hidden state after each), "logits"; "start", what an answer behind an encoder begins with."""


class Decoder:
    """A model in a session.

    weights: from `load_weights`. policy: what the cache keeps, everything by default. probe: sees intermediate values; in
    suites that compute on shares it must be given to all parties and the dealer alike.
    """

    def __init__(
        self,
        suite: Suite,
        architecture: Architecture,
        weights: Mapping[str, Value],
        policy: CachePolicy | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._check_weights(architecture, weights)
        self.suite = suite
        suite.begin(architecture.layers + 1, architecture.score_cap)
        self.architecture = architecture
        self.policy: CachePolicy = FullCache() if policy is None else policy
        self._weights = weights
        self._attention = Attention(suite, architecture, weights, self.policy)
        self._cross = CrossAttention(suite, architecture, weights)
        self._feed_forward = FeedForward(suite, architecture, weights)
        self._mixture = Mixture(suite, architecture, weights)
        self._probe: Probe = probe if probe is not None else lambda name, value: None

    def _check_weights(self, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        check_weights(architecture, weights)

    def new_cache(self, behind: int = 0) -> KVCache:
        """Return a cache for a session: empty, or with the registered prefix of so many tokens whose rows are among the
        weights (`models.prefix_rows`)."""
        cache = KVCache(self.architecture, self.policy, self._weights)
        cache.pager = self.suite.pager
        if cache.pager is not None:
            cache.pager.begin(cache.layers)
        if behind:
            begin_behind(self.suite, cache, self.policy, self._weights, behind)
        return cache

    def begun(self, behind: int, chunks: ChunkPlan | None, prompt: int, given: Tensor | None = None) -> KVCache:
        """Return `new_cache`, with chunks behind the prefix for a prompt of so many tokens, whose first tokens its batch
        begins with (`models.chunks`). given: where they are chosen in secret, as `chosen_chunks` takes it."""
        read = chunks is not None and not chunks.among
        cache = self.new_cache(behind + sum(chunks.kept) if chunks is not None and read else behind)
        if chunks is not None:
            cache.places = chunks.places(behind, prompt)
            if not read:
                cache.coming = partial(chosen_chunks, self.suite, self.architecture, self._weights, plan=chunks, given=given)
        return cache

    async def forward(
        self,
        inputs: Value,
        cache: KVCache,
        last_only: bool = False,
        progress: Callable[[int, int], None] | None = None,
        whole: bool = False,
    ) -> Value:
        """Return the logits of the next token after each of the tokens, or after the last one only.

        inputs: secret tokens: `Suite.indices` [T], as a client shares them, or one-hot rows [T, V] with 0 fraction bits,
        as an arg-max leaves them. cache: holds what was processed before, grows by T tokens. A batch of several tokens
        (or the first token) is a prompt batch: public causal mask. A single later token attends to what the cache policy
        selects; several of them go through `verify`. progress(done, total): called after each layer. whole: of the logits
        no fraction bit is cut, see `Suite.released`. Returns [T, V], or [1, V] with `last_only`.

        Raises `ConfigurationError` when shapes or positions do not fit the architecture.
        """
        tokens = self._checked(inputs, cache.seen)
        batch = Batch(max(cache.prompt_tokens, cache.seen + tokens), cache.seen, tokens, cache.behind)
        angles = self._angles_of(cache, tokens)
        if cache.prompt.padding is not None and cache.seen:
            await cache.prompt.padding.follow(self.suite, tokens)
        h = await self.embedded(inputs, cache.seen, cache.prompt.padding)
        looking, wanted = cache.looking, 1 if last_only else tokens
        looking.ahead = self.policy.looking_ahead(batch) if looking.end is not None or looking.probes is not None else 0
        if looking.ahead:
            h, angles = self._with_ahead(h, angles, cache, batch)
        h = await self._decoded(h, cache, Rows(wanted + looking.ahead if batch.last else wanted, angles), progress)
        if not cache.drafted:
            cache.seen += tokens
        return await self.head(h if h.shape[0] == wanted else h[:wanted], cache, whole)

    async def _decoded(
        self, h: Value, cache: KVCache, rows: Rows, progress: Callable[[int, int], None] | None = None
    ) -> Value:
        """Return the last `rows.wanted` rows of the residual stream after the last layer, of h before the decoder's first
        one [T, D]."""
        a, every = self.architecture, h.shape[0]
        rows = replace(rows, bias=self.bias(cache.seen, every))
        for layer in range(a.encoder_layers, a.layers):
            h = await self.layer(h, cache, layer, rows if layer == a.layers - 1 else replace(rows, wanted=every))
            if progress is not None:
                progress(layer + 1, a.layers)
        return h

    async def begin(
        self, prompt: Value, cache: KVCache, progress: Callable[[int, int], None] | None = None, whole: bool = False
    ) -> Value:
        """Return the logits [1, V] of an answer's first token behind an encoder, which reads the prompt's indices [P] into
        an empty cache. Otherwise as `forward`."""
        a, tokens = self.architecture, self._checked(prompt, 0)
        h = await self.embedded(prompt, 0)
        rows = Rows(tokens, {}, self.reading_bias(tokens))
        for layer in range(a.encoder_layers):
            h = await self.layer(h, cache, layer, rows)
            if progress is not None:
                progress(layer + 1, a.layers)
        await self.read(h, cache)
        h = await self._decoded(self.started(), cache, Rows(1, {}), progress)
        cache.prompt.rows = None
        cache.seen = 1
        return await self.head(h, cache, whole)

    async def read(self, h: Value, cache: KVCache) -> None:
        """Let the cache hold what an encoder made of the prompt: the residual stream after its last layer, [P, D]."""
        with self.suite.ledger.timed("encoder"):
            cache.prompt.rows = await self.suite.normalise(h, self.architecture.stream_norm)

    def started(self) -> Value:
        """Return the decoder's residual stream of the token that every answer begins behind, [1, D]; local."""
        h: Value = self._weights["embedding.start"].expand(1, self.architecture.width)
        self._probe("start", h)
        return h

    def bias(self, first: int, tokens: int) -> Value | None:
        """Return the biases [H, T, S] of the scores of the decoder's tokens from place `first` on with all up to the last of
        them; None where the model has no relative positions. Local."""
        encoder = self.architecture.encoder
        return None if encoder is None else self._biases("decoder", encoder.places_back(first, tokens, first + tokens))

    def reading_bias(self, tokens: int) -> Value | None:
        """Return the biases [H, P, P] of the scores of an encoder that reads P tokens; None without one. Local."""
        encoder = self.architecture.encoder
        return None if encoder is None else self._biases("encoder", encoder.places_both_ways(tokens))

    def _biases(self, which: str, places: Tensor) -> Value:
        found = self._weights[f"distances.{which}"][places.reshape(-1)]
        return found.permute(1, 0).reshape(self.architecture.heads, *places.shape)

    async def verify(self, inputs: Value, cache: KVCache) -> Value:
        """Return the logits [n, V] after each of n drafted tokens behind the cache, `Suite.indices` [n]: those that each of
        them would get as the only one of its step, if the ones before it are right.

        The cache then holds all n; `keep` says how many of them stay, before anything else is computed. For policies that
        verify (`CachePolicy.verifies`). Raises `ConfigurationError` as `forward` does.
        """
        cache.drafted = self._checked(inputs, cache.seen)
        return await self.forward(inputs, cache)

    async def keep(self, cache: KVCache, rows: int) -> None:
        """Let the first `rows` of the tokens that were verified last stay in the cache, public; the others are dropped."""
        cache.keep(self.suite, rows)
        for layer in range(self.architecture.encoder_layers, self.architecture.layers):
            cache.trim(layer)
            self.suite.at(layer)
            await self.policy.after_kept(self.suite, cache, layer, rows)
        cache.drafted = 0

    async def begin_padded(self, cache: KVCache, length: int) -> None:
        """Let a prompt of `length` tokens begin with as much padding as the cache was told (`PromptRows.start`)."""
        assert cache.prompt.start is not None
        self.suite.at(0)
        with self.suite.ledger.timed("embedding"):
            learned = self.architecture.learned_positions
            cache.prompt.padding = await Padding.of(self.suite, cache.prompt.start, length, learned)

    async def embedded(self, inputs: Value, position: int, padding: Padding | None = None) -> Value:
        """Return the residual stream before the first layer, [T, D]. inputs: as in `forward`. padding: of the prompt."""
        suite = self.suite
        suite.at(0)
        with suite.ledger.timed("embedding"):
            if padding is None or not self.architecture.learned_positions:
                h = self._at_place(await self.looked_up(inputs), position)
            else:
                placed = padding.places(suite, self.positions, position, inputs.shape[0])
                rows, places = await suite.together(self.looked_up(inputs), placed)
                h = rows + places
        self._probe("embedding", h)
        return h

    async def looked_up(self, inputs: Value) -> Value:
        """Return the rows [T, D] of tokens before they are at a place. inputs: as in `forward`."""
        rows = self.suite.look_up if len(inputs.shape) == 1 else self.suite.embed
        found: Value = await rows(inputs, self._weights["embedding.tokens"])
        return found

    def _at_place(self, rows: Value, position: int) -> Value:
        """Return tokens' rows [T, D] at places from `position` on; local."""
        if not self.architecture.learned_positions:
            return rows
        return rows + self.positions[position : position + rows.shape[0]]

    @property
    def positions(self) -> Value:
        """Return the table [P, D] of learned positions."""
        return self._weights["embedding.positions"]

    async def layer(self, h: Value, cache: KVCache, layer: int, rows: Rows) -> Value:
        """Run a layer on the residual stream: h [T, D] -> its last `rows.wanted` rows, [n, D]."""
        suite, a = self.suite, self.architecture
        suite.at(layer)
        cache.enter(layer)
        if a.parallel:
            return await self._beside(h, cache, layer, rows)
        crossed = a.encoder is not None and not a.reads(layer)
        if crossed:
            prepared = self._cross.prepare(cache.prompt, layer)
            h, _ = await suite.together(self._attended(h, cache, layer, rows), prepared)
        else:
            h = await self._attended(h, cache, layer, rows)
        self._probe(f"layer {layer}/attention", h)
        if crossed:
            with suite.ledger.timed(f"layer {layer}/cross"):
                h = await self._cross.attend(h, cache.prompt, layer)
            self._probe(f"layer {layer}/cross", h)
        with suite.ledger.timed(f"layer {layer}/mlp"):
            h = await self._fed_forward(h, cache, layer)
        self._probe(f"layer {layer}/mlp", h)
        return h

    async def _attended(self, h: Value, cache: KVCache, layer: int, rows: Rows) -> Value:
        """Return the last `rows.wanted` rows of the residual stream behind a layer's attention to its own tokens."""
        suite, a = self.suite, self.architecture
        norm = None if a.norms == "after" else a.stream_norm
        with suite.ledger.timed(f"layer {layer}/attention"):
            entered = await self._entered(h, norm, self._attention.entering(layer), cache, layer)
            if a.reads(layer):
                assert rows.bias is not None
                return await self._attention.reading(entered, layer, rows.bias, h)
            return await self._attention.leaving(entered, cache, layer, rows, h[h.shape[0] - rows.wanted :])

    async def _entered(
        self, h: Value, norm: Norm | None, layers: Sequence[Linear], cache: KVCache, layer: int
    ) -> list[Value]:
        """Return a layer's first products, beside whose rounds rows come that the prompt reads."""
        entering = self.suite.norm_linear(h, norm, layers)
        if cache.rows_of is None:
            return await entering
        entered, _ = await self.suite.together(entering, cache.rows_of(layer))
        return cast(list[Value], entered)

    async def _fed_forward(self, h: Value, cache: KVCache, layer: int) -> Value:
        """Return the residual stream [T, D] behind a layer's feed-forward part."""
        mixed = self.architecture.mixture(layer) is not None
        part = self._mixture if mixed else self._feed_forward
        places = self._mixture.places(h.shape[0]) if mixed and not cache.drafted else None
        if places is not None:
            h, dropped = await self._mixture.dispatched(h, layer, places)
            cache.dropped = dropped if cache.dropped is None else cache.dropped + dropped
            return h
        norm = None if self.architecture.norms == "after" else self.architecture.stream_norm
        entered = await self.suite.norm_linear(h, norm, part.entering(layer))
        return await part.leaving(entered, layer, h)

    async def _beside(self, h: Value, cache: KVCache, layer: int, rows: Rows) -> Value:
        """Run a layer whose attention and feed-forward read the same stream, the rounds of both shared."""
        suite, a = self.suite, self.architecture
        first, second = self._attention.entering(layer), self._feed_forward.entering(layer)
        every = rows.wanted == h.shape[0]
        with suite.ledger.timed(f"layer {layer}/attention"):
            entered = await self._entered(h, a.stream_norm, [*first, *second] if every else first, cache, layer)
        last = h[h.shape[0] - rows.wanted :]

        async def attention() -> Value:
            with suite.ledger.timed(f"layer {layer}/attention"):
                return await self._attention.leaving(entered[: len(first)], cache, layer, rows, last)

        async def feed_forward() -> Value:
            with suite.ledger.timed(f"layer {layer}/mlp"):
                products = entered[len(first) :] if every else await suite.norm_linear(last, a.stream_norm, second)
                return await self._feed_forward.leaving(products, layer, suite.public(0.0, last.shape))

        attended, written = await suite.together(attention(), feed_forward())
        self._probe(f"layer {layer}/attention", attended)
        h = suite.streams_added(attended, written)
        self._probe(f"layer {layer}/mlp", h)
        return h

    async def head(self, h: Value, cache: KVCache, whole: bool = False) -> Value:
        """Return the logits [T, V] of the residual stream after the last layer, [T, D]; `whole` as in `forward`."""
        suite = self.suite
        suite.at(self.architecture.layers)
        with suite.ledger.timed("head"):
            (logits,) = await suite.norm_linear(
                h, self.architecture.stream_norm, [linear_layer(self._weights, "head")], whole
            )
        await cache.settle()
        self._probe("logits", logits)
        return logits

    def _with_ahead(self, h: Value, angles: Angles, cache: KVCache, batch: Batch) -> tuple[Value, Angles]:
        """Return rows and angles of a batch, with those of the tokens that look at it behind them."""
        count, end, probes = cache.looking.ahead, cache.looking.end, cache.looking.probes
        place = batch.prompt - count if probes is None else batch.before + batch.tokens
        if probes is None:
            assert end is not None
            rows = end[end.shape[0] - count :]
        else:
            rows = self._at_place(probes, place)
        angles = _joined([angles, self.angles(place, count, batch.prompt)])
        return self.suite.concat([h, rows], 0), angles

    def _checked(self, inputs: Value, position: int) -> int:
        """Return T, after checking public shapes and positions."""
        a = self.architecture
        if inputs.shape[:1] == (0,) or tuple(inputs.shape[1:]) not in ((), (a.vocabulary,)):
            raise ConfigurationError(f"inputs must be [tokens] or [tokens, {a.vocabulary}], got {list(inputs.shape)}")
        tokens = inputs.shape[0]
        if position + tokens > a.positions:
            raise ConfigurationError(
                f"token {position + tokens} does not fit the model's {a.positions} positions; shorten prompt or answer"
            )
        return tokens

    def angles(self, position: int, tokens: int, length: int) -> Angles:
        """Return the cosines and sines of a batch. length: of the sequence, with all of its prompt."""
        a = self.architecture
        return {r: cosines_and_sines(r, a.head_channels, position, tokens, length) for r in a.rotaries}

    def _angles_of(self, cache: KVCache, tokens: int) -> Angles:
        """Return `angles` of the next batch. A drafted token's sequence ends with it, as if it came alone."""
        position, prompt = cache.seen, cache.prompt_tokens
        if cache.places is not None:
            places, every = torch.tensor(cache.places.batch), self.angles(0, prompt, prompt)
            return {rotary: (cos[places], sin[places]) for rotary, (cos, sin) in every.items()}
        if not cache.drafted:
            return self.angles(position, tokens, max(prompt, position + tokens))
        return _joined([self.angles(position + n, 1, max(prompt, position + n + 1)) for n in range(tokens)])


def _joined(parts: Sequence[Angles]) -> Angles:
    """Return the angles of batches one after the other."""
    return {key: (torch.cat([p[key][0] for p in parts]), torch.cat([p[key][1] for p in parts])) for key in parts[0]}


class StreamedDecoder(Decoder):
    """A decoder whose weights come and go: each is looked up when its part (`embedded`, `layer`, `head`) runs, and whoever
    puts it there has checked it."""

    def _check_weights(self, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        pass
