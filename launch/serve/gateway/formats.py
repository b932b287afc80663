"""Answers that are held to a format: JSON, JSON of a schema, the arguments of a function.

Whoever sees logits chooses among the tokens that go on with the format alone (the package llguidance says which they are),
so that every answer that ends by itself fits it. The schema stays at the gateway: of one that cannot be kept, whoever asked
is told the place.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from launch.serve.gateway.errors import ApiError, invalid
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError
from parties.client.sampling_params import Adjust

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# At most one space wherever JSON allows some: every token costs a round trip of the parties. What a schema asks for is met
# or refused, never left out.
_COMPILED: Any = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?", "lenient": False}
_WORD = re.compile(r"\$?[A-Za-z]+")
_KEYWORDS = frozenset(  # of JSON schema, which a message may name
    _WORD.findall(
        "additionalProperties allOf anyOf const contains dependentRequired dependentSchemas else enum exclusiveMaximum "
        "exclusiveMinimum format if items maxContains maxItems maxLength maxProperties maximum minContains minItems "
        "minLength minProperties minimum multipleOf not oneOf pattern patternProperties prefixItems properties "
        "propertyNames $ref required then type unevaluatedItems unevaluatedProperties uniqueItems"
    )
)


@dataclass(frozen=True)
class Call:
    """A function that an answer is the arguments of. by_name: the request names it; else it is the only one."""

    name: str = field(repr=False)
    by_name: bool


@dataclass(frozen=True)
class Format:
    """What an answer is held to. param: of the request, which says so. schema: JSON schema. Secret."""

    param: str
    schema: Mapping[str, Any] = field(repr=False)
    call: Call | None = None


class Held:
    """One answer on its way through its format: an `Adjust` that leaves the tokens that go on with it.

    ends: tokens that may end the answer where it is whole.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], adjust: Adjust | None = None) -> None:
        self._matcher = matcher
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)
        self._adjust = adjust

    def complete(self, token: int) -> bool:
        """Take the answer's next token; return whether nothing can follow it."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return logits [V], minus infinity where a token would leave the format. Raises `ConfigurationError` where the
        format takes more work than it may."""
        adjusted = logits if self._adjust is None else self._adjust(logits, tokens)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ConfigurationError("response_format: holding the answer to it takes too much work; simplify the schema")
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool))
        ends = self._ends[self._ends < len(logits)]
        allowed[ends] = bool(self._matcher.is_accepting())
        return adjusted.masked_fill(~allowed.to(adjusted.device), -torch.inf)


class FormatReader:
    """Reads formats for one tokenizer. vocabulary: entries of the model's logits."""

    def __init__(self, words: TextTokenizer, vocabulary: int) -> None:
        self._words = words
        self._size = max(vocabulary, words.size)
        self._lock = threading.Lock()

    def matcher(self, format: Format) -> LLMatcher:
        """Return what follows an answer in this format; copies of it follow further ones. Raises `ApiError` naming the
        parameter where the schema cannot be kept, or what that needs is not here."""
        if find_spec("llguidance") is None:
            raise invalid(
                f"{format.param} needs the package llguidance at this gateway; run: pip install 'mpcache[json]'",
                format.param,
                "unsupported_parameter",
            )
        from llguidance import LLMatcher

        schema = json.dumps(dict(format.schema))
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_COMPILED)
        with self._lock:
            found = LLMatcher(self._tokens(format.param), grammar, log_level=0)
        if found.is_error():
            raise _unfit(format.param, format.schema, found.get_error())
        return found

    def _tokens(self, param: str) -> LLTokenizer:
        """Return the bytes of all tokens. Raises `ApiError` where the tokenizer's files do not say them."""
        try:
            return self._known_tokens
        except ValueError:
            raise invalid(
                f"{param} needs a tokenizer of bytes, or of pieces with byte fallback; this model's is neither",
                param,
                "unsupported_parameter",
            ) from None

    @cached_property
    def _known_tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        backend = getattr(self._words.transformers, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("the tokenizer is written in Python")
        return LLTokenizer(backend.to_str(), n_vocab=self._size, eos_token=list(self._words.eos) or None)


def _unfit(param: str, schema: Mapping[str, Any], reason: str) -> ApiError:
    """Return the error of a schema that cannot be kept: with its place and value, and the reason's last line."""
    lines = reason.splitlines()
    why = "nothing satisfies it"
    if "Unsatisfiable" not in reason:
        place = _place(schema, reason)
        what = "it" if place is None else f"{place[0]} = {_short(place[1])}"
        why = f"{what} cannot be kept ({_short(lines[-1].removeprefix('error: '), whole=160)})"
    return invalid(f"{param}: the JSON schema is not supported: {why}; see docs/gateway.md", param, "invalid_value")


def _place(schema: Mapping[str, Any], reason: str) -> tuple[str, Any] | None:
    """Return the place that a reason is about, and the value there; None where it may be one of several.

    >>> _place({"properties": {"a": {"type": "text"}, "b": {"type": "string"}}}, "Invalid type: text")
    ('properties.a.type', 'text')
    """
    words, lines = frozenset(_WORD.findall(reason)), [line.strip() for line in reason.splitlines()]

    def is_named(keyword: str, value: Any) -> bool:
        written = [str(one).lstrip("#") for one in (value if isinstance(value, list) else [value])]
        ends = tuple(end for one in written for end in (f" {one}", f'"{one}"'))
        quoted = f'"{keyword}"' in reason or any(f"'{one}'" in reason for one in written)
        return quoted or any(line in written or (keyword in words and line.endswith(ends)) for line in lines)

    entries = list(_entries(schema))
    named = [entry for entry in entries if is_named(*entry[1:])]
    about = [entry for entry in entries if entry[1] in words]
    found = named[:1] or (about if len(about) == 1 else [])
    return (found[0][0], found[0][2]) if found else None


def _entries(value: Any, before: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the place, the keyword and the value of JSON schema's keywords; of `patternProperties` each pattern, too."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _entries(one, f"{before}{number}.")
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key in _KEYWORDS:
                yield f"{before}{key}", key, one
            if key == "patternProperties" and isinstance(one, Mapping):
                yield from ((f"{before}{key}", key, pattern) for pattern in one)
            yield from _entries(one, f"{before}{key}.")


def _short(value: Any, whole: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= whole else f"{text[:whole]} ..."
