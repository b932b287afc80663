"""Errors in OpenAI's format, with the status codes that its clients act upon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from mpc.errors import MpcacheError, PeerError, PeerSilent
from parties.errors import WrongOutput

RETRY_SECONDS = 1
PEER_SECONDS = 5  # that a role takes to start again
_INVALID, _SERVER, _BUSY = "invalid_request_error", "server_error", "rate_limit_error"

# Code of an error of this project -> (HTTP status, OpenAI's type). OpenAI's clients ask again by themselves after 408, 409,
# 429 and all from 500 on. Never after shares that were wrong: a party that shifts its share of an output would see by a
# second session whether the first one's token had left the vocabulary.
_STATUS: dict[str, tuple[int, str]] = {
    "configuration": (400, _INVALID),
    "range": (400, _INVALID),
    "checkpoint": (400, _INVALID),
    "permission": (403, "permission_error"),
    "busy": (429, _BUSY),
    "wire": (502, _SERVER),
    "wrong-output": (424, _SERVER),
    "manifest": (502, _SERVER),
    "peer": (503, _SERVER),
    "peer-lost": (503, _SERVER),
    "peer-silent": (504, _SERVER),
    "tape": (503, _SERVER),
    "cancelled": (503, _SERVER),
}


@dataclass
class ApiError(Exception):
    """What a request gets instead of an answer. peer: the party that is to blame, if one is."""

    status: int
    message: str
    type: str = _INVALID
    param: str | None = None
    code: str | None = None
    peer: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**error, "peer": self.peer} if self.peer is not None else error}

    def response(self) -> JSONResponse:
        """Return the whole response."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """Return the error of a wrong request. param: OpenAI's name of what is wrong in it."""
    return ApiError(status, message, _INVALID, param, code)


def busy(message: str, seconds: int = RETRY_SECONDS) -> ApiError:
    """Return the error of one request too many at a time. seconds: when to come again."""
    return ApiError(429, message, _BUSY, None, "busy", headers={"Retry-After": str(seconds)})


def from_error(error: MpcacheError) -> ApiError:
    """Return an error of this project as the client of the HTTP server sees it."""
    status, kind = _STATUS.get(error.code, (500, _SERVER))
    if status == 429:
        return busy(str(error))
    if isinstance(error, PeerError):
        code = "peer_silent" if isinstance(error, PeerSilent) else "peer_lost"
        return ApiError(status, str(error), kind, None, code, error.peer, {"Retry-After": str(PEER_SECONDS)})
    headers = {"x-should-retry": "false"} if isinstance(error, WrongOutput) else {}
    return ApiError(status, str(error), kind, None, error.code.replace("-", "_"), headers=headers)
