"""All cache policies by name, and their text form.

`name`, `name:setting=value,setting=value`; `preset=NAME` among the settings stands for a policy's named ones, which others
in the text override; for some layers only `policy@first-last;policy-of-the-rest`; around another
policy `shared:layers=2|policy`, `chunked:tokens=256|policy`, `batches:tokens=128|policy`, `lag:every=32|policy`,
`layers:weights=4 2 1*10|policy`, `merge:how=nearest|policy`, `demote:fraction_bits=2|policy`,
`think:keep=0.6|policy` and `cskv:rank=0.2|policy`.
A manifest carries this text; equal texts are equal policies.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from models.cache import CachePolicy
from models.policies.attention_gate import AttentionGate
from models.policies.batches import Batches, ChunkedPrefill
from models.policies.cake import CAKE
from models.policies.changed import Demoting, Lag, Layers, Merging
from models.policies.clustered import Clustered
from models.policies.compresskv import CompressKV
from models.policies.cskv import CSKV
from models.policies.d2o import D2O
from models.policies.dynamic_top_k import DynamicTopK
from models.policies.elastic import Elastic
from models.policies.ems import EMS
from models.policies.epicache import EpiCache
from models.policies.full import FullCache
from models.policies.h2o import H2O
from models.policies.kvmerger import KVMerger
from models.policies.lazyeviction import LazyEviction
from models.policies.locret import Locret
from models.policies.mikv import MiKV
from models.policies.mpcache import MPCache
from models.policies.quest import Quest
from models.policies.settings import value_of
from models.policies.snapkv import SnapKV
from models.policies.streaming_llm import StreamingLLM
from models.policies.think import Think
from models.policies.tova import TOVA
from models.policies.wrappers import PerLayer, SharedChoice
from mpc.errors import ConfigurationError

POLICIES: dict[str, type[CachePolicy]] = {
    kind.name: kind
    for kind in (
        FullCache,
        MPCache,
        StreamingLLM,
        H2O,
        SnapKV,
        CAKE,
        CompressKV,
        TOVA,
        LazyEviction,
        Locret,
        Elastic,
        D2O,
        KVMerger,
        EMS,
        EpiCache,
        MiKV,
        AttentionGate,
        Quest,
        DynamicTopK,
    )
}
WRAPPERS: dict[str, Any] = {
    kind.name: kind
    for kind in (SharedChoice, ChunkedPrefill, Batches, Lag, Layers, Merging, Demoting, Think, CSKV, Clustered)
}
MAX_LENGTH = 1000


def parse(text: str, plaintext: bool = False) -> CachePolicy:
    """Return the policy that a text stands for. Raises `ConfigurationError` naming the part that is wrong.

    plaintext: settings that cannot be computed on shares are allowed; the policy is for the suite `plain` then.

    >>> parse("snapkv:budget=0.2,window=16")
    SnapKV(budget=0.2, window=16, kernel=5)
    >>> parse("full@0-1;mpcache:dynamic=0.2").spec
    'full@0-1;mpcache:dynamic=0.2'
    """
    if len(text) > MAX_LENGTH:
        raise ConfigurationError(f"a policy's text has at most {MAX_LENGTH} characters, got {len(text)}")
    policy = _parsed(text)
    if policy.plaintext_only and not plaintext:
        raise ConfigurationError(
            f"policy {policy.name}: {policy.plaintext_only} is for comparisons in plaintext (`mpcache quality --tasks`) and "
            "cannot be computed on shares; leave it out"
        )
    return policy


def _parsed(text: str) -> CachePolicy:
    around, bar, inner = text.partition("|")
    if bar:
        name, settings = _named(around, WRAPPERS, "wrapper of cache policies")
        return _made(WRAPPERS[name], name, settings, inner=_parsed(inner))  # type: ignore[no-any-return]
    *rules, rest = text.split(";")
    if "@" in rest:
        _rule(rest)
        raise ConfigurationError(
            f"policy '{text[:100]}' names no policy for the other layers: its list is incomplete; end it with one, such as "
            f"{text[:100]};full"
        )
    if not rules:
        return _single(rest)
    return PerLayer(tuple(_rule(rule) for rule in rules), _single(rest))


def _rule(text: str) -> tuple[int, int, CachePolicy]:
    policy, at, layers = text.partition("@")
    first, _, last = layers.partition("-")
    if not at or not first.isdecimal() or (last and not last.isdecimal()):
        raise ConfigurationError(f"'{text}': a policy for some layers is written as policy@first-last, such as full@0-1")
    return int(first), int(last or first), _single(policy)


def _single(text: str) -> CachePolicy:
    name, settings = _named(text, POLICIES, "cache policy")
    return _made(POLICIES[name], name, settings)  # type: ignore[no-any-return]


def _named(text: str, known: dict[str, Any], what: str) -> tuple[str, str]:
    name, _, settings = text.strip().partition(":")
    if name not in known:
        raise ConfigurationError(f"unknown {what} '{name[:60]}'; known: {', '.join(known)}")
    return name, settings


def _made(kind: Any, name: str, settings: str, **fixed: Any) -> Any:
    fields = {f.name: f.default for f in dataclasses.fields(kind) if f.name not in fixed}
    values: dict[str, Any] = {}
    preset: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        setting, equals, value = (x.strip() for x in part.partition("="))
        if setting == "preset" and kind.presets:
            if value not in kind.presets or preset:
                raise ConfigurationError(
                    f"policy {name}: preset = {value[:60]!r} must be one of {', '.join(kind.presets)}, named once"
                )
            preset = kind.presets[value]
            continue
        if setting not in fields:
            raise ConfigurationError(f"policy {name} has no setting '{setting[:60]}'; known: {', '.join(fields) or 'none'}")
        if not equals or setting in values:
            raise ConfigurationError(f"policy {name}: write '{setting}=value' once, got '{settings[:100]}'")
        values[setting] = value_of(name, setting, value, fields[setting])
    return kind(**fixed, **{**preset, **values})
