"""What a configuration grants to a client and to a model owner: lengths, sessions, models, suites."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from mpc.errors import MpcacheError
from parties.certificates import check_name
from parties.fingerprints import Fingerprints
from protocols.registry import SUITES


def checked_name(name: str) -> str:
    """The name itself. Raises `ValueError` unless it can be an identity's name."""
    try:
        return check_name(name)
    except MpcacheError as error:
        raise ValueError(str(error)) from None


def checked_suites(names: list[str] | None) -> list[str] | None:
    """The names themselves. Raises `ValueError` for one that is no secure suite."""
    known = sorted(name for name in SUITES if name != "plain")
    if unknown := [name for name in names or [] if name not in known]:
        raise ValueError(f"unknown suite '{unknown[0]}'; known: {', '.join(known)}")
    return names


def fits(patterns: list[str] | None, *names: str) -> bool:
    """Whether one of `names` is what a grant lists: equal, or by `*` and `?` as in file names. Without a list all are."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


class ClientGrant(BaseModel):
    """A client that may generate. What is left out is the server's own limit; models and suites: all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name in the client's certificate.")
    fingerprint: Fingerprints = Field(default=(), description="Of its key; several while it changes its key.")
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="Most tokens of its prompts.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Most tokens that a session of it generates.")
    max_sessions: int | None = Field(default=None, ge=1, description="Most sessions of it that run at a time.")
    max_queued: int | None = Field(default=None, ge=0, description="Most sessions of it that wait.")
    models: list[str] | None = Field(default=None, description="Names or ids of the models that it may use; * and ? match.")
    suites: list[str] | None = Field(default=None, description="Suites that it may use.")

    @field_validator("suites")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        return checked_suites(value)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return checked_name(value)


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


Clients = list[Annotated[ClientGrant, BeforeValidator(_named)]]
Owners = list[Annotated[OwnerGrant, BeforeValidator(_named)]]
