"""EpiCache: of a long conversation, what an episode asks of it stays; probes of that episode look at every batch.

Source: Kim et al., "EpiCache: Episodic KV Cache Management for Long Conversational Question Answering", 2025
(arXiv:2509.17396), and its code: windows of utterances are clustered into episodes; for each, the history is read in blocks,
behind each of which an episode's windows look at what is cached; a row's score is the largest attention over them and a
group's heads; the first tokens stay. What is different here:
* whose episode it is, the client finds out in plaintext (`models.episodes`) and says in secret: the probes are its secret
  shares in front of the prompt, and all episodes look alike. A session serves one, so there is one cache and nothing to
  choose among;
* by default scores are sums over probes and heads, which take no comparison: `reduce=max` is the paper's;
* the paper's budgets by layer are `layers:weights=...|epicache`, its blocks `batches:tokens=...|epicache`. Without batches
  the probes look once, at the whole prompt.

Leaks: to parties and dealer how many tokens stay and how many probes look, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.probes import ProbeVotes, Reduce
from models.policies.composition import Axes, System
from models.policies.settings import one_of, ratio, whole


@dataclass(frozen=True)
class EpiCache(System):
    """budget: share of the prompt's tokens that a head keeps, probes not counted; 1 keeps everything, and there are no
    probes. probe_tokens: how many tokens in front of the
    prompt are none of it, but look at it. sinks: first tokens of the prompt
    that stay. last: last ones that stay, those of a question. reduce: `sum` or `max` of what probes say."""

    budget: float = 0.2
    probe_tokens: int = 64
    sinks: int = 4
    last: int = 16
    reduce: Reduce = "sum"
    name: ClassVar[str] = "epicache"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        for setting, least in (("probe_tokens", 1), ("sinks", 0), ("last", 1)):
            whole(self.name, setting, getattr(self, setting), least)
        one_of(self.name, "reduce", self.reduce, get_args(Reduce))

    @property
    def axes(self) -> Axes:
        keep = Keep(sinks=self.sinks, recent=self.last)
        return Axes(ProbeVotes(self.probe_tokens, self.reduce), Share(self.budget), keep)

    def least_batch(self) -> tuple[str, int]:
        return f"sinks = {self.sinks}, last = {self.last} and a token more", self.sinks + self.last + 1
