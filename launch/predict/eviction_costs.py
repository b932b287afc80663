"""What a policy costs once, after a prompt, beyond the full cache: predicted on tensors without content.

Per layer: what it takes to know the attention mass of tokens, then the policy's own stages. All layers but the last
compute the attention of all queries anyway; the last one, whose first token needs one query only, computes the observed
ones besides, which is most of it. Bytes are what parties count; rounds are at most these, since a session runs the stages
beside other work.

Of a prompt in several batches the whole is traced and compared with the full cache's in one: what tokens that are dropped
save in it counts, too, and is negative where it is more than the policy costs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from typing import Any

import torch

from models.architecture import Architecture
from models.cache import KVCache, causal_mask
from models.costs.estimation import Tracer
from models.costs.tracing import Setting
from models.policies import parse
from mpc.ledger import Cost
from protocols.suite import Suite, Value

MANY_SCORES = 1 << 25  # of all heads from which on one and two of them are traced: costs are linear in their number


def combined(*terms: tuple[float, Cost]) -> Cost:
    """Return the sum of factors times costs."""
    out = Cost()
    for field in fields(Cost):
        value = sum(factor * getattr(cost, field.name) for factor, cost in terms)
        setattr(out, field.name, value if field.name == "seconds_waiting" else round(value))
    return out


def after_prompt(architecture: Architecture, setting: Setting, prompt: int, known: Cost | None = None) -> Cost:
    """Return the costs of all layers together, beyond the full cache, for whatever evicts alike in all layers.

    known: what `common` says, where it is known already.
    """
    if _in_batches(setting, prompt):
        full = common(architecture, setting, prompt) if known is None else known
        return combined((1, _whole_prompt(architecture, setting, prompt)), (1, full))
    observed = min(prompt, parse(setting.policy).observed_queries(prompt, 0))
    stages = _layer(architecture, setting, prompt, observed)
    knowing = importance(architecture, setting, prompt) if known is None else known
    return combined((architecture.layers, stages), (1, knowing))


def common(architecture: Architecture, setting: Setting, prompt: int) -> Cost:
    """Return the part of `after_prompt` that is the same for all of a policy's alternatives: `importance`, or minus the full
    cache's prompt where one in batches is compared with it."""
    if not _in_batches(setting, prompt):
        return importance(architecture, setting, prompt)
    return combined((-1, _whole_prompt(architecture, replace(setting, policy="full"), prompt)))


def _in_batches(setting: Setting, prompt: int) -> bool:
    return len(parse(setting.policy).prompt_batches(prompt)) > 1


def _whole_prompt(architecture: Architecture, setting: Setting, prompt: int) -> Cost:
    """Return the costs of a prompt up to its first token."""
    with torch.inference_mode():
        found = Tracer(architecture, setting).step(0, prompt).costs
    return Cost(**{name: round(found.total(name)) for name in ("rounds", "bytes_sent", "offline_bytes")})


def importance(architecture: Architecture, setting: Setting, prompt: int) -> Cost:
    """Return what it costs to know the attention mass of a prompt's last queries, in all layers, beyond the full cache."""
    observed = min(prompt, parse(setting.policy).observed_queries(prompt, 0))
    if not observed:
        return Cost()
    middle = combined(
        (1, _attention(architecture, setting, prompt, prompt, observed, masked=False)),
        (-1, _attention(architecture, setting, prompt, prompt, 0, masked=False)),
    )
    last = combined(
        (1, _linear_in_heads(architecture, setting, prompt, observed)),
        (-1, _attention(architecture, setting, prompt, 1, 0, masked=True)),
    )
    return combined((architecture.layers - 1, middle), (1, last))


def _run(setting: Setting, program: Callable[[Suite], Coroutine[Any, Any, None]]) -> Cost:
    suite, _ = setting.make()
    with torch.inference_mode():
        suite.run(program(suite))
    return suite.ledger.total()


def _input(suite: Suite, *shape: int) -> Value:
    return suite.input(shape, None, suite.fraction_bits)


async def _cached(suite: Suite, a: Architecture, tokens: int) -> tuple[Value, Value]:
    """Return keys and values as a cache holds them; not counted."""
    k, v = [await suite.mask_for_cache(_input(suite, a.kv_heads, tokens, a.head_channels)) for _ in range(2)]
    suite.ledger.costs.clear()
    return k, v


def _layer(a: Architecture, setting: Setting, prompt: int, observed: int) -> Cost:
    """Return the costs of the policy's own stages."""
    policy = parse(setting.policy)

    async def program(suite: Suite) -> None:
        cache = KVCache(a, policy)
        cache.prompt_tokens = prompt
        entry = cache.layers[0]
        entry.k, entry.v = await _cached(suite, a, prompt)
        mass: Value | None = None
        if observed:
            q = await suite.mask_queries(_input(suite, a.kv_heads, a.group * observed, a.head_channels))
            everyone = torch.ones(q.shape[1], dtype=torch.bool)
            _, mass = await suite.attention_with_mass(q, entry.k, entry.v, None, everyone)
        suite.ledger.costs.clear()
        suite.at(0)
        await policy.after_prefill(suite, cache, 0, mass)

    return _run(setting, program)


def _attention(a: Architecture, setting: Setting, prompt: int, rows: int, observed: int, masked: bool) -> Cost:
    """Return the costs of a prompt's attention of its last `rows` queries. masked: each to the tokens up to its own;
    without, what does not depend on the number of scores is the same."""

    async def program(suite: Suite) -> None:
        k, v = await _cached(suite, a, prompt)
        suite.at(0)
        q = await suite.mask_queries(_input(suite, a.kv_heads, a.group * rows, a.head_channels))
        mask = causal_mask(rows, prompt, None, torch.device("cpu")) if masked else None
        if mask is not None:
            mask = mask.repeat(a.group, 1)
        if not observed:
            await suite.attention(q, k, v, mask)
            return
        last = (torch.arange(rows) >= rows - observed).repeat(a.group)
        await suite.attention_with_mass(q, k, v, mask, last)

    return _run(setting, program)


def _linear_in_heads(a: Architecture, setting: Setting, prompt: int, observed: int) -> Cost:
    """Return the costs of the observed queries' attention, from one and two key/value heads where there are very many
    scores."""

    def heads(count: int) -> Cost:
        changed = a.model_copy(update={"kv_heads": count, "heads": count * a.group})
        return _attention(changed, setting, prompt, observed, observed, masked=True)

    if a.heads * observed * prompt <= MANY_SCORES:
        return heads(a.kv_heads)
    one, two = heads(1), heads(2)
    found = combined((2 - a.kv_heads, one), (a.kv_heads - 1, two))
    found.rounds = one.rounds
    return found
