"""What a server grants all its clients, and which roles use a key of a configuration."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

# Roles that use a key; a key without one of these is for all of them.
PARTY: dict[str, JsonValue] = {"roles": ["party"]}
SERVERS: dict[str, JsonValue] = {"roles": ["party", "dealer"]}
NOT_DEALER: dict[str, JsonValue] = {"roles": ["party", "client", "model-owner"]}


class Limits(BaseModel):
    """What a server grants all clients. Lengths in tokens; sessions and loads are counted per server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_prompt_tokens: int = Field(default=8192, ge=1, description="Most tokens of a prompt.")
    max_new_tokens: int = Field(default=4096, ge=1, description="Most tokens that a session generates.")
    max_sessions: int = Field(default=4, ge=1, le=1000, description="Most sessions that run at a time.")
    max_in_step: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Most sessions of one model, suite and options that run in step: what they exchange in a round leaves "
        "in one message; the same at all parties. 1: every session has its own messages.",
        json_schema_extra=PARTY,
    )
    max_cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes that running sessions may cache together in memory, as predicted for their policies; left "
        "out: no limit.",
        json_schema_extra=PARTY,
    )
    max_paged_bytes: int = Field(
        default=0,
        ge=0,
        description="Most bytes that running sessions may cache beyond max_cache_bytes, in pages of the store; 0: none.",
        json_schema_extra=PARTY,
    )
    max_sent_bytes_together: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes that a party may send for a token of each running session together, as predicted: what its "
        "link carries in the time that a token may take; a session that would add more waits. Left out: no limit.",
        json_schema_extra=PARTY,
    )
    max_queued: int = Field(default=32, ge=0, le=10_000, description="Most sessions that wait for their turn.")
    max_queued_per_client: int = Field(default=8, ge=0, le=10_000, description="Most waiting sessions of one client.")
    max_calls_per_client: int | None = Field(
        default=None,
        ge=4,
        le=10_000,
        description="Most calls that one client or model owner may have open; left out: what its sessions need, and 8.",
    )
    max_loads: int = Field(default=2, ge=1, description="Most loaded models that are kept in memory.")
    max_loads_per_client: int | None = Field(
        default=None,
        ge=1,
        description="Most of them that are kept for one client, and that its sessions use at a time; left out: max_loads.",
    )
    max_token_dealt_bytes: int = Field(
        default=4 << 30, ge=1, description="Most bytes that may be dealt for one token, as predicted for a session."
    )
    max_token_sent_bytes: int = Field(
        default=1 << 30, ge=1, description="Most bytes that a party may send for one token, as predicted for a session."
    )
    max_dealt_bytes: int | None = Field(
        default=None, ge=1, description="Most bytes that may be dealt for a session, as predicted; left out: no limit."
    )
    max_sent_bytes: int | None = Field(
        default=None, ge=1, description="Most bytes that a party may send in a session, as predicted; left out: no limit."
    )
    max_prediction_seconds: float = Field(
        default=60.0, gt=0, description="How long it may take to predict what a session costs, before it is refused."
    )
    max_prefixes: int = Field(
        default=8, ge=1, description="Most registered prefixes whose rows are kept in memory, ready for sessions."
    )
    max_prefix_bytes: int = Field(
        default=16 << 30,
        ge=0,
        description="Most bytes that the stored rows of registered prefixes may take together.",
        json_schema_extra=PARTY,
    )
    max_tape_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of tapes: a party uses no more of what its folder holds, the oldest first; a dealer "
        "deals no more for one party at a time; left out: no limit.",
        json_schema_extra=SERVERS,
    )
    max_model_bytes: int = Field(
        default=64 << 30,
        ge=1,
        description="Most bytes that one party's shares of a model may take.",
        json_schema_extra=PARTY,
    )

    @property
    def cached_bytes(self) -> int | None:
        """Bytes that running sessions may cache together, in memory and in pages; None: no limit."""
        return None if self.max_cache_bytes is None else self.max_cache_bytes + self.max_paged_bytes

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_paged_bytes and self.max_cache_bytes is None:
            raise ValueError(
                "max_paged_bytes: nothing leaves memory without a limit on what may lie there: set max_cache_bytes too"
            )
        return self
