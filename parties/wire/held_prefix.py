"""Registered prefixes as parties tell of them: their public facts, and what a client makes of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mpc.errors import WireError
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import check_id, packed_ids, unpacked_ids
from protocols.options import OptionValue

OPTIONS_BYTES = 1 << 14


class Registered(Protocol):
    """The public facts of a prefix that a party holds."""

    @property
    def prefix(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def suite(self) -> str: ...

    @property
    def fraction_bits(self) -> int: ...

    @property
    def options(self) -> Mapping[str, OptionValue]: ...

    @property
    def session(self) -> str: ...

    @property
    def text(self) -> Sequence[int] | None: ...

    @property
    def scores(self) -> str: ...


@dataclass(frozen=True)
class RegisteredPrefix:
    """A registered prefix of a model, as all parties hold it. tokens: of its text; text: its token ids, None where they are
    secret. suite, fraction_bits, options: those of the sessions that may begin behind it. session: in which its rows were
    computed. scores: kind of those beside them (`models.prefix_scores`), empty without."""

    prefix: str
    name: str
    tokens: int
    suite: str
    fraction_bits: int
    options: Mapping[str, OptionValue] = field(hash=False)
    session: str
    text: tuple[int, ...] | None
    scores: str = ""


def held_prefix(facts: Registered) -> wire.HeldPrefix:
    """Return the message of a prefix that a party holds."""
    return wire.HeldPrefix(
        prefix=facts.prefix,
        name=facts.name,
        tokens=facts.tokens,
        suite=facts.suite,
        fraction_bits=facts.fraction_bits,
        options=json.dumps(dict(facts.options), sort_keys=True),
        session=facts.session,
        text=packed_ids(facts.text) if facts.text is not None else b"",
        scores=facts.scores,
    )


def read_prefix(message: wire.HeldPrefix, sender: str) -> RegisteredPrefix:
    """Return a prefix that a party says it holds. Raises `WireError`."""
    try:
        options = json.loads(message.options) if len(message.options) <= OPTIONS_BYTES else None
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(value, bool | int | float | str) for value in options.values()):
        raise WireError(f"{sender} sent a prefix whose options are not those of a suite")
    text = tuple(unpacked_ids(message.text, sender)) if message.text else None
    if text is not None and len(text) != message.tokens:
        raise WireError(f"{sender} sent a prefix of {message.tokens} tokens with a text of {len(text)}")
    return RegisteredPrefix(
        check_id(message.prefix, "prefix", sender),
        message.name[:64],
        message.tokens,
        message.suite[:64],
        message.fraction_bits,
        options,
        check_id(message.session, "session", sender),
        text,
        message.scores[:64],
    )
