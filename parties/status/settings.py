"""The settings that all servers of a deployment should have in common, as they tell them to each other."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpc.errors import WireError
from parties.config.role_config import RoleConfig

SETTINGS_BYTES = 1 << 16
Name = Annotated[str, Field(max_length=64)]


class Settings(BaseModel):
    """Public. parties: names in order of their index. dealer: None where a role does not know it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    parties: Annotated[list[Name], Field(max_length=64)]
    dealer: Name | None
    deadline_seconds: float
    connect_seconds: float
    step_seconds: float
    max_prompt_tokens: int
    max_new_tokens: int

    @classmethod
    def of(cls, config: RoleConfig) -> Settings:
        """Return a role's own settings."""
        dealer = config.name if config.role == "dealer" else config.dealer.name if config.dealer else None
        return cls(
            parties=config.party_names,
            dealer=dealer,
            deadline_seconds=config.deadline_seconds,
            connect_seconds=config.connect_seconds,
            step_seconds=config.step_seconds,
            max_prompt_tokens=config.limits.max_prompt_tokens,
            max_new_tokens=config.limits.max_new_tokens,
        )

    def canonical(self) -> str:
        """Return canonical JSON: keys sorted, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, sender: str) -> Settings:
        """Return the settings that a peer sent as JSON. Raises `WireError`."""
        if len(text) > SETTINGS_BYTES:
            raise WireError(f"{sender} sent settings of {len(text)} characters, at most {SETTINGS_BYTES} are expected")
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise WireError(f"{sender} sent settings that cannot be read") from None

    def mark(self) -> str:
        """Return eight hexadecimal digits that are equal where the settings are."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:8]

    def differences(self, other: Settings) -> dict[str, tuple[object, object]]:
        """Return keys whose values differ, with both values."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}
