"""Many policies after one prompt: the prompt is processed once, with the full cache, and every policy begins from there.

What a policy does to a prompt's cache depends on what tokens receive from the last queries, and on nothing else that the
full cache's pass does not make. So its pass keeps all queries, keys and values; a policy is told what it would have been
told, and decodes on a cache of its own. A policy that evicts within the prompt has a pass of its own. Policies decode in
step, so that a weight is read once for the tokens of all of them: who is to multiply by one waits for the others.
Plaintext only; the same answers as `models.generation.PlainModel.generate`, up to rounding of floats.

Axis names as in `protocols.suite`: G key/value heads, R query heads per key/value head, T tokens, S cached tokens, C.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from models.cache import CachePolicy, KVCache, Stage
from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.episodes import with_probes
from models.loaded import load_weights
from models.masks import causal_mask
from models.observation import Observation, Seen
from models.policies import parse
from models.prefill import prefill
from protocols.observed import Attended, Observed
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.schedule import Request
from protocols.suite import Linear, Suite, Value

MOST_SCORES = 1 << 20
"""Scores that are held at once where what tokens receive is added up over blocks of queries: what stays in a CPU's cache."""
IN_STEP = 8
"""Policies that decode in step, at most: as many caches of the prompt are held."""


Done = Callable[[list[int]], bool]
"""Whether more tokens behind these would change nothing."""
N = TypeVar("N")
Program = Generator[int, Tensor, N]


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation. given: tokens in front of its answer; new_tokens: of the answer, at most."""

    given: Sequence[int]
    new_tokens: int
    done: Done = lambda ids: False


@dataclass(frozen=True)
class Fed:
    """What is said of a token that is given. loss: -ln of its probability; likeliest: whether none has a larger one."""

    loss: float
    likeliest: bool


@dataclass(frozen=True)
class _Product(Request[PlainValue]):
    """Rows x [n, in] that wait to be multiplied by a layer's weight."""

    x: Tensor
    layer: Linear


class NotingSuite(PlainSuite):
    """The suite `plain`, faster where a prompt is long or programs run together; other values only by rounding.

    noted: while it is a list, the queries [G, R, T, C] of each attention that is asked what tokens receive, which it then
    does not say.
    """

    noted: list[Tensor] | None = None

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> PlainValue:
        """As in `plain`; rows of programs that run together are multiplied by their layer in one product."""
        if len(x.shape) != 2:
            return await super().linear(x, layer, residual)
        product = await _Product(tensor_of(x), layer)
        return product if residual is None else product + residual

    def _flush(self, requests: list[_Product]) -> list[PlainValue]:
        """Return a product for each request: those with one weight come in one product."""
        layers: dict[int, list[int]] = {}
        for n, request in enumerate(requests):
            layers.setdefault(id(request.layer.weight), []).append(n)
        found: dict[int, PlainValue] = {}
        for which in layers.values():
            rows, layer = [requests[n].x for n in which], requests[which[0]].layer
            product = torch.cat(rows) @ tensor_of(layer.weight)
            if layer.bias is not None:
                product = product + tensor_of(layer.bias)
            found |= zip(which, map(PlainValue, torch.split(product, [len(x) for x in rows])), strict=True)
        return [found[n] for n in range(len(requests))]

    async def observed_attention(
        self, q: Value, k: Value, v: Value | None, mask: Tensor | None, observed: Observed
    ) -> Attended:
        """As in `plain`; while queries are noted, by torch's own kernel, which holds no matrix of scores; then all masses
        are zero."""
        if self.noted is None:
            return await super().observed_attention(q, k, v, mask, observed)
        keys = tensor_of(k)
        groups, cached, channels = keys.shape
        heads = tensor_of(q).reshape(groups, -1, cached, channels)  # all queries of a prompt in one batch
        self.noted.append(heads)
        nothing = PlainValue(torch.zeros_like(keys[..., 0]))
        if v is None:
            return Attended(None, nothing)
        shape = (groups, heads.shape[1], cached, channels)
        wide_keys, wide_values = (x[:, None].expand(*shape) for x in (keys, tensor_of(v)))
        first = None if mask is None else mask[:cached]  # the same for every head of a group
        out = functional.scaled_dot_product_attention(heads, wide_keys, wide_values, first, scale=1.0)
        return Attended(PlainValue(out.reshape(groups, -1, channels)), nothing)


@dataclass
class _Noting(CachePolicy):
    """The full cache, all of whose queries are wanted. keys, values: by layer, [G, T, C]. features: [T, (H + 2G) C]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(tokens, features=True)

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        keys, values = cache.layers[layer].keys_and_values()
        self.keys.append(tensor_of(keys))
        self.values.append(tensor_of(values))
        assert seen.features is not None
        self.features.append(tensor_of(seen.features))
        return []


@dataclass(frozen=True)
class Prefilled:
    """A prompt, token ids, behind the full cache's pass. logits [1, V] of the first token; queries [G, R, T, C], keys and
    values [G, T, C] and features [T, (H + 2G) C] by layer. told: what policies have asked of a layer, and were told."""

    ids: list[int]
    logits: Tensor
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    features: list[Tensor]
    told: dict[tuple[int, Observation], Seen] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Return T."""
        return len(self.ids)


class PrefilledModel:
    """A checkpoint in the suite `plain`, float32, on `device`."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.architecture = checkpoint.architecture
        self.suite = NotingSuite(torch.float32, device)
        self.weights = self.suite.run(load_weights(self.suite, self.architecture, checkpoint.weights.__getitem__))

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], progress: Callable[[int, int], None] | None = None) -> Prefilled:
        """Run the prompt's pass. progress(done, total): layers."""
        noting = _Noting()
        decoder = Decoder(self.suite, self.architecture, self.weights, noting)
        queries: list[Tensor] = []
        self.suite.noted = queries
        try:
            logits = self.suite.run(decoder.forward(self._indices(ids), decoder.new_cache(), True, progress))
        finally:
            self.suite.noted = None
        return Prefilled(list(ids), tensor_of(logits), queries, noting.keys, noting.values, noting.features)

    def answers(
        self, prompt: Prefilled, policies: Sequence[str], new_tokens: int, done: Done = lambda ids: False
    ) -> list[list[int]]:
        """Return each policy's greedily generated tokens, up to and with the first end-of-text token."""
        return [answer for (answer,) in self.conversations(prompt, policies, [Turn((), new_tokens, done)])]

    def conversations(self, prompt: Prefilled, policies: Sequence[str], turns: Sequence[Turn]) -> list[list[list[int]]]:
        """Return each policy's greedy answers, one a turn: what a turn gives and each answer are in the cache for the turns
        behind. Of a policy with probes every turn is a session of its own, whose probes are of the episode that it is about
        (`models.episodes`)."""
        one_session = [text for text in policies if not parse(text, plaintext=True).probes]
        found = dict(zip(one_session, self._in_step(prompt, one_session, self._conversing(turns)), strict=True))
        return [found[text] if text in found else self._sessions(prompt.ids, text, turns) for text in policies]

    def _sessions(self, ids: Sequence[int], policy: str, turns: Sequence[Turn]) -> list[list[int]]:
        """Return a policy's answers, each by a session that reads the text so far."""
        text, answers = list(ids), list[list[int]]()
        for turn in turns:
            text += turn.given
            unread = Prefilled(text, torch.empty(0), [], [], [], [])
            ((answer,),) = self._in_step(unread, [policy], self._conversing([replace(turn, given=())]))
            answers.append(answer)
            text = [*text, *(token for token in answer if token not in self.architecture.eos)]
        return answers

    def _conversing(self, turns: Sequence[Turn]) -> Callable[[Tensor], Program[list[list[int]]]]:
        """Return the program of a conversation, see `_in_step`."""
        eos = self.architecture.eos

        def program(logits: Tensor) -> Program[list[list[int]]]:
            found = list[list[int]]()
            for turn in turns:
                last = found[-1][-1:] if found and found[-1][-1] not in eos else []
                for token in (*last, *turn.given):
                    logits = yield token
                found.append(ids := [])
                while True:
                    ids.append(int(logits.argmax(-1).item()))
                    if len(ids) >= turn.new_tokens or ids[-1] in eos or turn.done(ids):
                        break
                    logits = yield ids[-1]
            return found

        return program

    def fed(self, prompt: Prefilled, policies: Sequence[str], following: Sequence[int]) -> list[list[Fed]]:
        """Return what each policy says of each following token, given all before it; decoded one by one."""

        def program(logits: Tensor) -> Program[list[Fed]]:
            found = list[Fed]()
            for n, token in enumerate(following, 1):
                found.append(Fed(-float(torch.log_softmax(logits.double(), -1)[0, token]), int(logits.argmax(-1)) == token))
                if n < len(following):
                    logits = yield token
            return found

        return self._in_step(prompt, policies, program)

    @torch.inference_mode()
    def _in_step(self, prompt: Prefilled, policies: Sequence[str], program: Callable[[Tensor], Program[N]]) -> list[N]:
        """Return what a program says of each policy, `IN_STEP` of them at a time. It is begun with the logits [1, V] behind
        the prompt, yields the tokens that the cache grows by, and gets the logits behind each of them."""
        found: dict[int, N] = {}
        for start in range(0, len(policies), IN_STEP):
            begun = [self._begun(prompt, text) for text in policies[start : start + IN_STEP]]
            going = {n: program(logits) for n, (_, _, logits) in enumerate(begun, start)}
            told: dict[int, Tensor | None] = dict.fromkeys(going)
            while going:
                tokens = dict[int, int]()
                for n, one in list(going.items()):
                    try:
                        tokens[n] = one.send(told[n])  # type: ignore[arg-type]
                    except StopIteration as stop:
                        found[n] = stop.value
                        del going[n]
                caches = [(begun[n - start], self._indices([token])) for n, token in tokens.items()]
                steps = [decoder.forward(token, cache, True) for (decoder, cache, _), token in caches]
                rows = self.suite.run(self.suite.together(*steps))
                told = dict(zip(tokens, map(tensor_of, rows), strict=True))
        return [found[n] for n in range(len(policies))]

    def _indices(self, ids: Sequence[int]) -> PlainValue:
        return self.suite.indices(len(ids), torch.tensor(list(ids)), self.architecture.vocabulary)

    def _begun(self, prompt: Prefilled, text: str) -> tuple[Decoder, KVCache, Tensor]:
        """Return a decoder, the cache that the policy leaves of the prompt, and the logits of the first token."""
        policy = parse(text, plaintext=True)
        policy.check(self.architecture, prompt.tokens + policy.probes)
        decoder = Decoder(self.suite, self.architecture, self.weights, policy)
        cache = decoder.new_cache()
        if policy.evicts_within_prompt:
            ids = with_probes(prompt.ids, policy.probes)
            return decoder, cache, tensor_of(self.suite.run(prefill(decoder, cache, self._indices(ids))))
        cache.prompt_tokens = prompt.tokens
        for layer, entry in enumerate(cache.layers):
            entry.prompt_queries = prompt.queries[layer] if policy.plaintext_only else None
            entry.k, entry.v = PlainValue(prompt.keys[layer]), PlainValue(prompt.values[layer])
            if noted := min(policy.noted_queries(prompt.tokens, layer), prompt.tokens):
                last = prompt.queries[layer][:, :, -noted:]
                entry.queries = PlainValue(last.reshape(last.shape[0], -1, last.shape[3]))
            seen = self._seen(prompt, layer, policy.observation(prompt.tokens, layer))
            self.suite.run(policy.after_prefill(self.suite, cache, layer, seen))
            cache.trim(layer)
        cache.seen = prompt.tokens
        return decoder, cache, prompt.logits

    def _seen(self, prompt: Prefilled, layer: int, asked: Observation) -> Seen:
        """Return what the prompt's last queries tell of the tokens."""
        known = prompt.told.get((layer, asked))
        if known is None:
            known = prompt.told[layer, asked] = self._looked(prompt, layer, asked)
        return known

    def _looked(self, prompt: Prefilled, layer: int, asked: Observation) -> Seen:
        count = min(asked.queries, prompt.tokens)
        features = PlainValue(prompt.features[layer]) if asked.features else None
        if not count:
            return Seen(features=features)
        queries, keys = prompt.queries[layer], prompt.keys[layer]
        window = self.architecture.window(layer)
        groups, group, _, _ = queries.shape
        mass, squares, late = (torch.zeros((groups, group, prompt.tokens)).to(keys) for _ in range(3))
        first_late = prompt.tokens - min(asked.late, prompt.tokens)
        each = []
        block = max(1, MOST_SCORES // (groups * group * prompt.tokens))
        for start in range(prompt.tokens - count, prompt.tokens, block):
            stop = min(start + block, prompt.tokens)
            scores = queries[:, :, start:stop] @ keys[:, None, :stop].transpose(-1, -2)  # [G, R, n, stop]
            mask = causal_mask(stop - start, stop, window)
            if mask is not None:
                scores = scores.masked_fill(~mask.to(scores.device), float("-inf"))
            p = torch.softmax(scores, -1)
            mass[..., :stop] += p.sum(2)
            late[..., :stop] += p[:, :, max(0, first_late - start) :].sum(2)
            if asked.each:
                each.append(functional.pad(p.sum((0, 1)), (0, prompt.tokens - stop)))
            if asked.squares:
                squares[..., :stop] += p.square().sum(2)
        if asked.each:
            return Seen(PlainValue(torch.cat(each)), 1, groups * group, features=features, each=True)
        heads = asked.of_heads(groups * group)
        if heads is None:
            apart = PlainValue(late.sum(1)) if asked.late else None
            told = Seen(PlainValue(mass.sum(1)), count, group, features=features)
            return replace(told, late=apart, late_queries=prompt.tokens - first_late)
        of_heads = [PlainValue(x.flatten(0, 1)[list(heads)]) for x in (mass, squares)]
        return Seen(of_heads[0], count, 1, of_heads[1] if asked.squares else None, features)
