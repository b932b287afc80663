"""Errors on the wire: a typed error becomes a gRPC status with a `Failure` in its metadata, and the same error again.

Only errors of `mpc.errors` cross with their message; any other exception crosses as "internal error" with its type's name,
because its message might quote data.
"""

from __future__ import annotations

import traceback
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from mpc import errors
from parties.errors import Busy, Cancelled, InternalError, SessionFinished
from parties.events import LONGEST, clean, log
from parties.wire import wire_pb2 as wire

METADATA_KEY = "mpcache-failure-bin"


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


class Refusal(Exception):
    """What the other side of a call beside gRPC says of why it refuses the call, or ends it."""

    def __init__(self, failure: wire.Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


def public(error: BaseException, where: str) -> errors.MpcacheError:
    """Return the error itself if it is typed; else an `InternalError` without the message, which is not logged either."""
    if isinstance(error, errors.MpcacheError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    trace = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    log.error("%s: internal error %s at:%s", where, type(error).__name__, trace)
    return InternalError(f"internal error in {where}: {type(error).__name__}; its log says where")


def farewell(error: BaseException, name: str, step: str) -> errors.MpcacheError:
    """Return what the others are told when `name` ends a session because of any exception, Ctrl-C included. Whoever called
    gets the exception itself, so that nothing is logged."""
    if isinstance(error, errors.MpcacheError) and not isinstance(error, Cancelled):
        return error
    if isinstance(error, Exception) and not isinstance(error, Cancelled):
        return InternalError(f"internal error in {name}: {type(error).__name__}")
    return errors.PeerLost(name, step, "gave the session up")


def to_failure(error: errors.MpcacheError) -> wire.Failure:
    """Return the wire form of an error."""
    failure = wire.Failure(code=error.code, message=str(error)[:LONGEST])
    if isinstance(error, errors.PeerError):
        failure.peer, failure.step, failure.reason = error.peer, error.step, error.reason[:LONGEST]
    return failure


def from_failure(failure: wire.Failure, reporter: str) -> errors.MpcacheError:
    """Return the error that `reporter` sent, of its own type. What is wrong with a machine (its disk is full) is said with
    the name of who has that machine.

    >>> str(from_failure(wire.Failure(code="environment", message="the disk is full: make room"), "party1"))
    'party1: the disk is full: make room'
    """
    if failure.code in _PEER:
        return _PEER[failure.code](clean(failure.peer), clean(failure.step), clean(failure.reason))
    message = clean(failure.message) or f"{reporter} failed without a message"
    if failure.code == errors.EnvironmentProblem.code and reporter not in message:
        message = f"{reporter}: {message}"
    return _PLAIN.get(failure.code, InternalError)(message)


def said_why(error: Exception) -> bool:
    """Whether a stream's exception is a refusal or a report of the other side, not just a lost connection."""
    if isinstance(error, Refusal):
        return True
    if not isinstance(error, grpc.Call) or error.code() is None:
        return False
    call: Any = error
    named = any(key == METADATA_KEY for key, _ in call.trailing_metadata() or ())
    return named or call.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)


def from_rpc(error: Exception, peer: str, step: str) -> errors.MpcacheError:
    """Return what an exception of a stream with `peer` means."""
    if isinstance(error, Refusal):
        return from_failure(error.failure, peer)
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
