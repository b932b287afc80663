"""What a configuration grants to a client and to a model owner, and what may be asked of a model."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from models.outputs import Decoding, Output
from mpc.errors import MpcacheError
from parties.names import Fingerprints, check_name
from protocols.registry import secure_suites

COSTS = ("max_token_dealt_bytes", "max_token_sent_bytes", "max_dealt_bytes", "max_sent_bytes")


def checked_name(name: str) -> str:
    """Return the name itself. Raises `ValueError` unless it can be an identity's name."""
    try:
        return check_name(name)
    except MpcacheError as error:
        raise ValueError(str(error)) from None


def checked_suites(names: list[str] | None) -> list[str] | None:
    """Return the names themselves. Raises `ValueError` for one that is no secure suite."""
    known = secure_suites()
    if unknown := [name for name in names or [] if name not in known]:
        raise ValueError(f"unknown suite '{unknown[0]}'; known: {', '.join(known)}")
    return names


def fits(patterns: list[str] | None, *names: str) -> bool:
    """Whether one of `names` is what a grant lists: equal, or by `*` and `?` as in file names. Without a list all are.

    >>> fits(["gpt2-*"], "gpt2-medium"), fits(["gpt2-*"], "llama"), fits(None, "llama")
    (True, False, True)
    """
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


class ClientGrant(BaseModel):
    """A client that may generate. What is left out is the server's own limit; of lists: all, but of `decoding` greedy and
    sample, since whoever learns logits learns much more of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name in the client's certificate.")
    fingerprint: Fingerprints = Field(default=(), description="Of its key; several while it changes its key.")
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="Most tokens of its prompts.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Most tokens that a session of it generates.")
    max_sessions: int | None = Field(
        default=None,
        ge=1,
        description="Most sessions of it that run at a time; left out, one less than the server's if there are others.",
    )
    max_queued: int | None = Field(default=None, ge=0, description="Most sessions of it that wait.")
    models: list[str] | None = Field(default=None, description="Names or ids of the models that it may use; * and ? match.")
    suites: list[str] | None = Field(default=None, description="Suites that it may use.")
    policies: list[str] | None = Field(default=None, description="Cache policies that it may use; * and ? match.")
    suite_options: list[str] | None = Field(
        default=None,
        description="Suite options that it may use beside those of the model's owner, as 'name=value'; * and ? match.",
    )
    max_token_dealt_bytes: int | None = Field(default=None, ge=1, description="Most bytes dealt for one token.")
    max_token_sent_bytes: int | None = Field(default=None, ge=1, description="Most bytes that a party sends for one token.")
    max_dealt_bytes: int | None = Field(default=None, ge=1, description="Most bytes dealt for a session of it.")
    max_sent_bytes: int | None = Field(default=None, ge=1, description="Most bytes that a party sends in a session of it.")
    decoding: list[Decoding] = Field(
        default=["greedy", "sample"], description="How its tokens may be chosen: greedy, sample, logits."
    )

    outputs: list[Output] | None = Field(default=None, description="What it may learn of encoders: outputs by name.")

    @field_validator("outputs")
    @classmethod
    def _any(cls, value: list[Output] | None) -> list[Output] | None:
        if value == []:
            raise ValueError("an empty list grants nothing: name an output, or leave the list out")
        return value

    @field_validator("suites")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        return checked_suites(value)

    @field_validator("decoding")
    @classmethod
    def _some(cls, value: list[Decoding]) -> list[Decoding]:
        if not value:
            raise ValueError("an empty list grants nothing: name greedy, sample or logits, or take the client away")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return checked_name(value)


class ModelGrant(BaseModel):
    """What may be asked of the models of a name. policies, suite_options: all if left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name or id of models; * and ? match.")
    policies: list[str] | None = Field(default=None, description="Cache policies that may be used; * and ? match.")
    suite_options: list[str] | None = Field(
        default=None,
        description="Suite options that may be used beside those of the model's owner, as 'name=value'; * and ? match.",
    )


class OwnerGrant(BaseModel):
    """A model owner. models: the names that it may store, replace and remove; all if left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name in the model owner's certificate.")
    fingerprint: Fingerprints = Field(default=(), description="Of its key; several while it changes its key.")
    models: list[str] | None = Field(default=None, description="Names that its models may have; * and ? match.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return checked_name(value)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Models = list[Annotated[ModelGrant, BeforeValidator(_named)]]
Clients = list[Annotated[ClientGrant, BeforeValidator(_named)]]
Owners = list[Annotated[OwnerGrant, BeforeValidator(_named)]]
