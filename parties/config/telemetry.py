"""Settings of what a server tells those who run it: metrics, traces."""

from __future__ import annotations

from ipaddress import ip_address

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Listener(BaseModel):
    """Where a plain HTTP listener binds to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int = Field(ge=0, le=65535, description="Port to listen at.")
    host: str = Field(default="127.0.0.1", description="Address to bind to; not only this machine can read it elsewhere.")

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            return str(ip_address(value))
        except ValueError:
            raise ValueError(f"'{value}' is not an IP address: write 127.0.0.1, or 0.0.0.0 for every network") from None


class Telemetry(BaseModel):
    """Where OpenTelemetry traces go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(description="OTLP/HTTP address of a collector, such as http://127.0.0.1:4318/v1/traces.")

    @field_validator("endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"'{value}' is not an address: write http://HOST:4318/v1/traces, or https://")
        return value
