"""What a session is about. Public, made by the client; all parties and the dealer hold the same or there is no session."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import struct
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from models import public_tables
from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.chunks import MOST_CANDIDATES, MOST_CHUNKS, ChunkPlan
from models.costs.expert_ways import OPTION as WAY
from models.costs.expert_ways import with_way
from models.drafting import MOST_GUESSES, DraftPlan
from models.encoding import MOST_TEXTS, EncodingPlan
from models.generation import check_agreed_temperature
from models.plans import AnyPlan, Leaving, Lengths, make_plan
from models.policies import parse
from models.prefix_scores import scores_of
from models.prefixes import ROWS
from mpc.errors import ConfigurationError, ManifestMismatch, WireError
from mpc.generators import AES
from protocols.options import OptionValue
from protocols.registry import SuiteSpec

PROTOCOL_VERSION = 10
ID_PATTERN = re.compile(r"[0-9a-f]{32}")
DIGEST_PATTERN = re.compile(r"([0-9a-f]{64})?")
MANIFEST_BYTES = 1 << 16

Identifier = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
PrefixName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


def package_version() -> str:
    """Return the version of the installed distribution."""
    return version("mpcache")


def new_id() -> str:
    """Return a random 128-bit identifier, hexadecimal, of a session, a model or a load.

    A model's id is random and not a hash of its weights: a hash would let anybody test whether the secret model is some
    checkpoint that he knows.
    """
    return secrets.token_hex(16)


def check_id(text: str, what: str, sender: str) -> str:
    """Return the id itself. Raises `WireError` naming the sender unless it is 128 bits in hexadecimal."""
    if not ID_PATTERN.fullmatch(text):
        raise WireError(f"{sender} sent a {what} id of {len(text)} characters, expected 32 hexadecimal digits")
    return text


def check_digest(text: str, sender: str) -> str:
    """Return a tokenizer's digest itself. Raises `WireError` naming the sender unless it is 256 bits in hexadecimal, or
    empty."""
    if not DIGEST_PATTERN.fullmatch(text):
        raise WireError(f"{sender} sent a tokenizer's digest of {len(text)} characters, expected 64 hexadecimal digits")
    return text


def architecture_hash(architecture: AnyArchitecture) -> str:
    """Return the SHA-256 of an architecture's canonical JSON."""
    return hashlib.sha256(architecture.to_json().encode()).hexdigest()


class ProgramFacts(BaseModel):
    """What decides a session's program, and with it what is dealt for it: all of a manifest but whose weights they are.

    architecture: hash of its canonical JSON. decoding: what leaves the program, of a decoder or an encoder. options: the
    suite's own settings. temperature: of the dealt noise, with decoding "sample" and only there. draft: guesses of a drafted
    step, 0 without a draft. prefix_tokens: of the registered prefix that the prompt continues, 0 without one;
    chunk_tokens: of each chunk between them, chunk_again: how many of its first are computed again; chunk_slots: how many of
    the chunks stand there, each chosen in secret, 0 where all do, in order. padded: whether the first of `prompt_tokens` may
    be padding, how many is secret. text_tokens: of each
    text of an encoder's session, padding included, none where it has but one; prompt_tokens: of all of them. parties: names
    in order of their index. prg: generator of each party whose seeds AES-256-CTR does not expand. tables: hash of the public
    tables that shares are multiplied by (`models.public_tables`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: int
    version: Annotated[str, Field(max_length=64)]
    architecture: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    suite: Annotated[str, Field(max_length=64)]
    fraction_bits: Annotated[int, Field(ge=1, le=40)]
    options: Annotated[dict[Annotated[str, Field(max_length=64)], OptionValue], Field(max_length=32)]
    prefix_tokens: Annotated[int, Field(ge=0, le=1 << 24)]
    chunk_tokens: Annotated[list[Annotated[int, Field(ge=1, le=1 << 24)]], Field(max_length=MOST_CANDIDATES)]
    chunk_again: Annotated[int, Field(ge=0, le=1 << 24)]
    chunk_slots: Annotated[int, Field(ge=0, le=MOST_CHUNKS)]
    prompt_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    padded: bool = False
    text_tokens: Annotated[list[Annotated[int, Field(ge=1, le=1 << 24)]], Field(max_length=MOST_TEXTS)] = []
    new_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    decoding: Leaving
    temperature: float | None
    policy: Annotated[str, Field(max_length=400)]
    draft: Annotated[int, Field(ge=0, le=MOST_GUESSES)]
    parties: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=2, max_length=64)]
    prg: dict[str, Literal["chacha20"]] = {}
    tables: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("prg")
    @classmethod
    def _of_parties(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if other := set(value) - set(info.data.get("parties", [])):
            raise ValueError(f"of '{sorted(other)[0][:64]}', which is no party")
        return value

    @field_validator("temperature")
    @classmethod
    def _agreed(cls, value: float | None, info: ValidationInfo) -> float | None:
        try:
            check_agreed_temperature(info.data.get("decoding", ""), value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def spec(self) -> SuiteSpec:
        """Return the suite. Raises `ConfigurationError`, `RangeError` for one that cannot be made here."""
        return SuiteSpec(self.suite, self.fraction_bits, self.options)

    def generator(self, party: str) -> str:
        """Return how a party's seeds are expanded."""
        return self.prg.get(party, AES)

    @property
    def plan(self) -> AnyPlan:
        """Return the plan. Raises `ConfigurationError` for one that cannot be."""
        draft = DraftPlan(self.draft) if self.draft else None
        texts = tuple(self.text_tokens)
        lengths = Lengths(self.prompt_tokens, self.new_tokens, self.prefix_tokens, self.chunk_plan, texts, self.padded)
        return make_plan(lengths, self.decoding, self.policy, self.temperature, draft)

    @property
    def chunk_plan(self) -> ChunkPlan | None:
        """Return what is public of chunks, None without any. Raises `ConfigurationError` for what cannot be."""
        tokens, slots = self.chunk_tokens, self.chunk_slots
        if not tokens:
            return None
        if not slots:
            return ChunkPlan(tuple(tokens), self.chunk_again)
        if len(set(tokens)) > 1:
            raise ConfigurationError(f"candidates are equally long, got chunks of {tokens} tokens: choose in public instead")
        return ChunkPlan((tokens[0],) * slots, self.chunk_again, len(tokens))


class PrefixFacts(BaseModel):
    """Which registered prefix a session begins behind, or registers. id: of its stored rows. Where it is registered, name:
    the owner's for it; text: SHA-256 of its token ids where they are public (`packed_ids`), empty where they are secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Identifier
    name: PrefixName | None = None
    text: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Manifest(ProgramFacts):
    """Everything public that two parties must agree on before they exchange a share. model: id of the shared weights.
    prefix: None without one. chunks: ids of the registered texts behind it, in order, or of the candidates for their
    slots."""

    model: Identifier
    prefix: PrefixFacts | None = None
    chunks: Annotated[list[Identifier], Field(max_length=MOST_CANDIDATES)] = []

    @classmethod
    def of(
        cls, model: str, architecture: AnyArchitecture, suite: SuiteSpec, plan: AnyPlan, parties: Mapping[str, str]
    ) -> Manifest:
        """Return the manifest of a session that runs `plan` in `suite`. model: id of the shared weights. parties: in order,
        each with its generator. How mixtures of experts are computed is chosen here, where the suite does not say it."""
        chunks = plan.chunks
        if isinstance(architecture, Architecture):
            suite = with_way(suite, architecture, plan.prompt_tokens, plan.policy, len(parties))
        return cls(
            protocol=PROTOCOL_VERSION,
            version=package_version(),
            model=model,
            architecture=architecture_hash(architecture),
            suite=suite.name,
            fraction_bits=suite.fraction_bits,
            options=dict(suite.options),
            prefix_tokens=plan.behind,
            chunk_tokens=[] if chunks is None else list(chunks.lengths[:1] * chunks.among or chunks.lengths),
            chunk_again=0 if chunks is None else chunks.again,
            chunk_slots=len(chunks.lengths) if chunks is not None and chunks.among else 0,
            prompt_tokens=plan.prompt_tokens,
            padded=plan.padded,
            text_tokens=list(plan.texts) if isinstance(plan, EncodingPlan) and len(plan.texts) > 1 else [],
            new_tokens=plan.new_tokens,
            decoding=plan.decoding,
            temperature=plan.temperature,
            policy=plan.policy,
            draft=0 if plan.draft is None else plan.draft.tokens,
            parties=list(parties),
            prg={name: "chacha20" for name, prg in parties.items() if prg == "chacha20"},
            tables=public_tables.digest(architecture),
        )

    def with_prefix(self, prefix: PrefixFacts | None, chunks: Sequence[str] = ()) -> Manifest:
        """Return the manifest of a session behind a registered prefix and chunks, or of one that registers it."""
        return self.model_copy(update={"prefix": prefix, "chunks": list(chunks)})

    @property
    def computed_tokens(self) -> int:
        """Return the tokens whose keys and values the session computes before its first output: the prompt's, and those of
        chunks that are computed again."""
        chunks = self.chunk_plan
        return self.prompt_tokens + (0 if chunks is None else chunks.repaired)

    @property
    def read_tokens(self) -> int:
        """Return the tokens of prefix, chunks and prompt, which the session's cache holds when it answers."""
        chunks = self.chunk_plan
        return self.prefix_tokens + (0 if chunks is None else chunks.tokens) + self.prompt_tokens

    @property
    def blocks(self) -> dict[int, tuple[str, int]]:
        """Return id and tokens of each registered text that the session begins behind: the prefix by 0, chunks from 1."""
        if self.registers:
            return {}
        first = {} if self.prefix is None else {0: (self.prefix.id, self.prefix_tokens)}
        return first | dict(enumerate(zip(self.chunks, self.chunk_tokens, strict=True), 1))

    @property
    def registers(self) -> bool:
        """Whether the session registers a prefix."""
        return self.decoding == ROWS

    def _prefix_fits(self) -> bool:
        """Whether there is a prefix where there must be one, and a name where it is registered."""
        if len(self.chunks) != len(self.chunk_tokens) or (self.registers and self.chunks):
            return False
        if not self.chunks and self.chunk_slots:
            return False
        if self.prefix is None:
            return not self.prefix_tokens and not self.registers
        named = self.prefix.name is not None
        return named == self.registers and (self.registers or (self.prefix_tokens > 0 and not self.prefix.text))

    def canonical(self) -> bytes:
        """Return canonical JSON: keys sorted, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def parse(cls, data: bytes, sender: str) -> Manifest:
        """Read canonical JSON. Raises `WireError` or, for another protocol version, `ManifestMismatch`."""
        if len(data) > MANIFEST_BYTES:
            raise WireError(f"{sender} sent a manifest of {len(data)} bytes, at most {MANIFEST_BYTES} are expected")
        try:
            values: Any = json.loads(data)
        except (ValueError, RecursionError):
            raise WireError(f"{sender} sent a manifest that is not JSON") from None
        if isinstance(values, dict) and values.get("protocol") != PROTOCOL_VERSION:
            raise ManifestMismatch(
                f"{sender} speaks protocol {_brief(values.get('protocol'))} (version {_brief(values.get('version'))}), "
                f"here is protocol {PROTOCOL_VERSION} (version {package_version()}): install the same version everywhere"
            )
        try:
            manifest = cls.model_validate(values)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise WireError(f"{sender} sent a manifest whose field '{where}' is wrong: {error.errors()[0]['msg']}") from None
        try:
            canonical = manifest.canonical()
        except ValueError:  # an option that is infinite or not a number
            canonical = b""
        if canonical != data:
            raise WireError(f"{sender} sent a manifest that is not in canonical form")
        if not manifest._prefix_fits():
            raise WireError(f"{sender} sent a manifest whose fields 'prefix', 'prefix_tokens' and 'decoding' do not fit")
        return manifest

    def load_key(self, storing: str = "") -> tuple[str, ...]:
        """Return what must be equal for masked weights of an earlier session to serve again.

        storing: at a party, the nonce of the shares (`parties.party.store`); the dealer has none. How mixtures of experts
        are computed changes no weight.
        """
        options = json.dumps(self.row_options, sort_keys=True)
        return (self.model, storing, self.architecture, self.suite, str(self.fraction_bits), options, *self.parties)

    @property
    def row_options(self) -> dict[str, OptionValue]:
        """Return `row_options` of the suite's options."""
        return row_options(self.options)

    def masked_with(self, storing: str, storings: Sequence[str]) -> str:
        """Return what a load's masks serve at a party, 128 bits in hexadecimal: `storing`, the nonce of its shares of the
        model; of a session behind registered texts a digest of it and of `storings`, the nonces of their rows in order."""
        if not self.blocks:
            return storing
        return hashlib.sha256(json.dumps([storing, *self.rows_key(storings)]).encode()).hexdigest()[:32]

    def rows_key(self, storings: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the same for the masked rows of its blocks together. storings: at a party, the nonces of their rows."""
        ids = [f"{number}:{id}" for number, (id, _) in self.blocks.items()]
        how = str((self.chunk_again, self.chunk_slots > 0, scores_of(parse(self.policy))))
        return (" ".join(ids), " ".join(storings), how, *self.load_key())


def row_options(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Return the options of a suite that weights and rows depend on: all but how mixtures of experts are computed."""
    return {name: value for name, value in options.items() if name != WAY}


def packed_ids(ids: Sequence[int]) -> bytes:
    """Return a public text's token ids as they travel: 4 bytes each, little-endian.

    >>> packed_ids([1, 256]).hex()
    '0100000000010000'
    """
    return struct.pack(f"<{len(ids)}I", *ids)


def unpacked_ids(data: bytes, sender: str) -> list[int]:
    """Return the token ids of a public text. Raises `WireError`."""
    if len(data) % 4:
        raise WireError(f"{sender} sent a text of {len(data)} bytes, expected 4 for each token")
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def compare(first: str, mine: Manifest, second: str, other: Manifest) -> None:
    """Raise `ManifestMismatch`, naming both holders and every field that differs, unless the manifests are equal."""
    if mine.digest() == other.digest():
        return
    left, right = mine.model_dump(), other.model_dump()
    fields = [
        f"{key} ({first}: {_brief(left[key])}, {second}: {_brief(right[key])})" for key in left if left[key] != right[key]
    ]
    raise ManifestMismatch(
        f"{first} and {second} hold different manifests: {'; '.join(fields)}; the client must send all parties the same one"
    )


def check_client(session: str, first: str, mine: str, second: str, other: str) -> None:
    """Raise `ManifestMismatch`, naming both holders and both clients, unless the session is one client's at both."""
    if mine != other:
        raise ManifestMismatch(
            f"session {session} is of client '{mine[:64]}' at {first} and of client '{other[:64]}' at {second}: a session "
            "is one client's at all parties; open a new one"
        )


def check_version(manifest: Manifest, sender: str, own: str, own_name: str) -> None:
    """Raise `ManifestMismatch` when the sender runs another version of this package."""
    if manifest.version != own:
        raise ManifestMismatch(
            f"{sender} runs version {_brief(manifest.version)}, {own_name} runs version {own}: install the same everywhere"
        )


def check_generators(manifest: Manifest, sender: str, own: Mapping[str, str], own_name: str) -> None:
    """Raise `ManifestMismatch`, naming the party and both generators, unless the manifest's are those of a configuration."""
    for party, prg in own.items():
        if manifest.generator(party) != prg:
            raise ManifestMismatch(
                f"{sender} has prg {manifest.generator(party)} of {party}, {own_name} is configured with {prg}: write one "
                f"'prg' in the entry of {party} in 'parties' at all roles"
            )


def check_tables(manifest: Manifest, architecture: AnyArchitecture, sender: str, own_name: str) -> None:
    """Raise `ManifestMismatch`, naming both, when the public tables are not those that this machine makes."""
    own = public_tables.digest(architecture)
    if manifest.tables != own:
        raise ManifestMismatch(
            f"{sender} and {own_name} make different public tables ({manifest.tables[:12]} and {own[:12]}), by which shares "
            "are multiplied: the answer would be noise; install the same versions of Python and torch on both"
        )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
