"""Errors on the wire: a typed error becomes a gRPC status with a `Failure` in its metadata, and the same error again.

Only errors of `mpc.errors` cross with their message; any other exception crosses as "internal error" with its type's name,
because its message might quote data.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from mpc import errors
from parties.wire import wire_pb2 as wire
from protocols.range_findings import RangeFinding, summary

if TYPE_CHECKING:
    from parties.client.client import GenerationResult

METADATA_KEY = "mpcache-failure-bin"
LONGEST = 2000
log = logging.getLogger("mpcache")


class Busy(errors.MpcacheError):
    """A server has as many sessions as it may; ask again later."""

    code = "busy"


class InternalError(errors.MpcacheError):
    """Something went wrong that is not a user's mistake; the details are in that role's log."""

    code = "internal"


class SessionFinished(errors.MpcacheError):
    """Not a failure: the client has what it wanted and ended the session in good order."""

    code = "finished"


class Cancelled(errors.MpcacheError):
    """The caller gave the generation up."""

    code = "cancelled"


class RangeExceeded(errors.MpcacheError):
    """A value left its declared range on the way to a token, so the answer ends before that token.

    findings: what left its range, in the order of the computation. text: the answer so far, right up to precision; None
    where no text was asked for. result: the generation with its tokens so far; None outside a session. All of it, the
    message included, is the client's: this error is made where the session's outputs are opened, and crosses no wire.
    """

    code = "range-exceeded"

    def __init__(
        self, findings: Sequence[RangeFinding], text: str | None = None, result: GenerationResult | None = None
    ) -> None:
        super().__init__(summary(findings))
        self.findings = tuple(findings)
        self.text = text
        self.result = result


class WrongOutput(errors.MpcacheError):
    """The parties' shares of an output did not add up to a token of the vocabulary: one of them has sent a wrong one.

    Raised when the session is over, which goes on as after any other token: no party is told. tokens: of the outputs before
    it, secret. This error is the client's and crosses no wire.
    """

    code = "wrong-output"

    def __init__(self, step: int, parties: Sequence[str], tokens: Sequence[int]) -> None:
        super().__init__(
            f"the shares of output {step} do not add up to a token of the vocabulary: one of {', '.join(parties)} has sent "
            "a wrong share, and tokens before it may be wrong as well; the session went on as after any other token, to "
            "tell them nothing; do not use the answer, do not ask again, and ask the parties' operators"
        )
        self.step = step
        self.tokens = tuple(tokens)


_PLAIN: dict[str, type[errors.MpcacheError]] = {
    cls.code: cls
    for cls in (
        errors.ConfigurationError,
        errors.EnvironmentProblem,
        errors.RangeError,
        errors.WireError,
        errors.ManifestMismatch,
        errors.TapeError,
        errors.CheckpointError,
        errors.PermissionRefused,
        Busy,
        InternalError,
    )
}
_PEER: dict[str, type[errors.PeerError]] = {cls.code: cls for cls in (errors.PeerError, errors.PeerLost, errors.PeerSilent)}
CODES = frozenset({*_PLAIN, *_PEER, errors.MpcacheError.code, SessionFinished.code, "complete"})  # how a session may end
_STATUS = {
    "configuration": grpc.StatusCode.INVALID_ARGUMENT,
    "range": grpc.StatusCode.INVALID_ARGUMENT,
    "wire": grpc.StatusCode.INVALID_ARGUMENT,
    "manifest": grpc.StatusCode.FAILED_PRECONDITION,
    "permission": grpc.StatusCode.PERMISSION_DENIED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "peer-lost": grpc.StatusCode.ABORTED,
    "peer-silent": grpc.StatusCode.ABORTED,
}


def public(error: BaseException, where: str) -> errors.MpcacheError:
    """The error itself if it is typed; else an `InternalError` without the message, which is not logged either."""
    if isinstance(error, errors.MpcacheError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    trace = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    log.error("%s: internal error %s at:%s", where, type(error).__name__, trace)
    return InternalError(f"internal error in {where}: {type(error).__name__}; its log says where")


def farewell(error: BaseException, name: str, step: str) -> errors.MpcacheError:
    """What the others are told when `name` ends a session because of any exception, Ctrl-C included."""
    if isinstance(error, Exception) and not isinstance(error, Cancelled):
        return public(error, name)
    return errors.PeerLost(name, step, "gave the session up")


def to_failure(error: errors.MpcacheError) -> wire.Failure:
    """The wire form of an error."""
    failure = wire.Failure(code=error.code, message=str(error)[:LONGEST])
    if isinstance(error, errors.PeerError):
        failure.peer, failure.step, failure.reason = error.peer, error.step, error.reason[:LONGEST]
    return failure


def from_failure(failure: wire.Failure, reporter: str) -> errors.MpcacheError:
    """The error that `reporter` sent, of its own type."""
    if failure.code in _PEER:
        return _PEER[failure.code](clean(failure.peer), clean(failure.step), clean(failure.reason))
    return _PLAIN.get(failure.code, InternalError)(clean(failure.message) or f"{reporter} failed without a message")


def clean(text: str) -> str:
    """A peer's text made fit for one line of a terminal or log."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST])


def said_why(error: Exception) -> bool:
    """Whether a stream's exception is a refusal or a report of the other side, not just a lost connection."""
    if not isinstance(error, grpc.Call) or error.code() is None:
        return False
    call: Any = error
    named = any(key == METADATA_KEY for key, _ in call.trailing_metadata() or ())
    return named or call.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)


def from_rpc(error: Exception, peer: str, step: str) -> errors.MpcacheError:
    """What an exception of a stream with `peer` means."""
    if not isinstance(error, grpc.Call) or error.code() is None:
        return errors.PeerLost(peer, step, "the connection ended")
    call: Any = error
    code = call.code()
    for key, value in call.trailing_metadata() or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            try:
                return from_failure(wire.Failure.FromString(value), peer)
            except DecodeError:
                break
    details = clean(call.details() or "")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.WireError(f"a message exchanged with {peer} is larger than the wire allows: {details}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Busy(f"{peer} serves as many calls as it may; try again later")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return errors.ManifestMismatch(f"{peer} does not know this call: it has another role or another version")
    return errors.PeerLost(peer, step, f"the connection ended ({code.name.lower()}: {details or 'no details'})")


def abort(context: Any, error: errors.MpcacheError) -> NoReturn:
    """End a call on the server's side with a typed status."""
    context.set_trailing_metadata(((METADATA_KEY, to_failure(error).SerializeToString()),))
    context.abort(_STATUS.get(error.code, grpc.StatusCode.INTERNAL), str(error)[:LONGEST])
    raise AssertionError("unreachable: abort raises")
