"""One generation as a client asks for it: a prompt, how to answer it, and which model, suite and cache policy compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.chunks import ChunkPlan
from models.generation import GenerationPlan
from models.padding import bucket, check_buckets
from models.policies import parse
from mpc.errors import ConfigurationError
from parties.client.drafting import Draft
from parties.client.model_reference import ModelReference
from parties.client.prefixes import ChunkChoice
from parties.client.sampling_params import GREEDY, SamplingParams
from protocols.registry import USUAL, SuiteSpec


@dataclass(frozen=True)
class GenerationRequest:
    """What a generation asks for. The prompt is secret, and so are the texts and tokens that end the answer.

    prompt_ids: token ids of the prompt, secret; of a policy with probes these are made of it (`models.episodes`). params:
    how to answer. suite: what computes; its options go over the bounds that the model's owner gave. policy: the cache
    policy's text (`models.policies.registry`). model: a reference, an id or a name; None: the only model. draft: how this
    client guesses tokens for the parties to verify, several in the rounds of one (`parties.client.drafting`); None: one
    token a step. prefix: the name or id of a registered prefix that the prompt continues; "auto": the prompt is whole, and
    begins behind whichever public prefix it begins with; None: none. chunks: names or ids of registered texts between
    prefix and prompt (`parties.client.prefixes.ChunkChoice`), secret among their candidates unless they are public.
    prompt_buckets: the prompt is padded to the least of these lengths that holds it, which is then all that parties and
    dealer learn of its length; none: no padding.

    >>> request = GenerationRequest([3, 1, 4], SamplingParams(8), policy="h2o:budget=0.5")
    >>> request.plan().prompt_tokens, request.suite.name
    (3, 'masked')
    """

    prompt_ids: Sequence[int] = field(default=(), repr=False)
    params: SamplingParams = GREEDY
    suite: SuiteSpec = USUAL
    policy: str = "full"
    model: ModelReference | str | None = None
    draft: Draft | None = None
    prefix: str | None = None
    chunks: ChunkChoice = field(default_factory=ChunkChoice)
    prompt_buckets: Sequence[int] = ()

    def plan(self, behind: int = 0, chunks: ChunkPlan | None = None) -> GenerationPlan:
        """Return what is public about it, behind a prefix of so many tokens and chunks. Raises `ConfigurationError` for an
        empty prompt, an unknown policy, or a draft that cannot be verified."""
        if not len(self.prompt_ids):
            raise ConfigurationError("the prompt is empty; give at least one token")
        check_buckets(self.prompt_buckets)
        params, tokens = self.params, len(self.prompt_ids) + parse(self.policy).probes
        return GenerationPlan(
            bucket(tokens, self.prompt_buckets) if self.prompt_buckets else tokens,
            params.max_tokens,
            params.decoding,
            self.policy,
            params.agreed_temperature,
            None if self.draft is None else self.draft.plan,
            behind,
            chunks,
            padded=bool(self.prompt_buckets),
        )
