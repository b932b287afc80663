"""Scores that the tokens of a registered prefix have for good: what policies begin with that ask for more than their own
prompt's queries say.

H2O's scorer adds up what every query gave to a token, Locret's reads a token's own query. Of a prefix both end in one number
a token and key/value head, which depends on nothing behind it. So it is computed when the prefix is registered for such a
policy, in one batch with the full cache, and stored, masked and loaded as a row of one channel beside the keys and values
(`models.prefix_rows`). A session's own batches add to it as later batches of a prompt do.

Leaks: nothing but the kind of scores, which the manifest says (docs/security.md, "Registered prefixes").
"""

from __future__ import annotations

from collections.abc import Mapping

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, LayerState, Place, Stage
from models.learned import check_learned
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.batches import InBatches
from models.policies.composition import System
from models.policies.settings import no_windows
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

SCORES = "scores"


def _system(policy: CachePolicy) -> System | None:
    """Return the system that scores, within batches or alone."""
    while isinstance(policy, InBatches):
        policy = policy.inner
    return policy if isinstance(policy, System) and policy.axes.budget.share < 1 else None


def scores_of(policy: CachePolicy) -> str:
    """Return which scores a prefix's tokens must have for a policy; empty where it needs none, or where none would do.

    >>> from models.policies import parse
    >>> scores_of(parse("batches:tokens=8|h2o")), scores_of(parse("locret:width=64")), scores_of(parse("snapkv"))
    ('attention', 'retaining 64', '')
    """
    system = _system(policy)
    alone = system is not None and system.axes.keep.sharing.layers == 1
    return system.axes.scorer.for_good if system is not None and alone else ""


def _scorer(policy: CachePolicy) -> Scorer:
    system = _system(policy)
    assert system is not None
    return system.axes.scorer


class Noting(CachePolicy):
    """The full cache, which lets a policy's scorer take in what it asks of a prompt, and drops nothing. Raises
    `ConfigurationError` for a policy that needs no scores of a prefix."""

    name = "noting"

    def __init__(self, policy: CachePolicy) -> None:
        if not scores_of(policy):
            raise ConfigurationError(
                f"policy = '{policy.spec}' needs no scores of a prefix, or none can be kept for it: leave it out; h2o and "
                "locret begin with scores"
            )
        self._policy = policy
        self._scorer = _scorer(policy)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse sliding windows, and a model without what the scorer has learned of it."""
        no_windows(self._policy.name, architecture, prompt_tokens)
        check_learned(self._policy.name, self._policy.weight_shapes(architecture), architecture)

    def new_state(self, place: Place) -> LayerState:
        return self._scorer.new_state()

    def observation(self, tokens: int, layer: int) -> Observation:
        return self._scorer.observation(tokens, layer)

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        """Return the steps of scoring and of masking scores for reuse; the scores stay in the layer's state."""
        entry = cache.layers[layer]
        state = entry.state_of(EvictionState)
        state.learned, state.groups = entry.learned, entry.keys_and_values()[0].shape[0]
        return [*self._scorer.batch(suite, state, seen), *self._scorer.after(suite, state)]


def noted(cache: KVCache, layer: int) -> Value:
    """Return the scores of a layer behind a prompt with `Noting`, as rows [G, S, 1]."""
    scores = cache.layers[layer].state_of(EvictionState).scores
    assert scores is not None
    return scores.reshape(*scores.shape, 1)


def begin_scored(suite: Suite, cache: KVCache, policy: CachePolicy, rows: Mapping[int, Value], tokens: int) -> None:
    """Let a policy's states of all layers begin with a prefix's scores. rows: by layer, [G, S, 1]. Local."""
    scorer = _scorer(policy)
    for layer, scores in rows.items():
        state = cache.layers[layer].state_of(EvictionState)
        scorer.begin(suite, state, scores.reshape(*scores.shape[:2]), tokens * cache.group)
