"""What actors answer: JSON text of public facts, or of an error that the caller raises again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mpc.errors import EnvironmentProblem
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_failure, public

Report = dict[str, Any]


def reported(work: Callable[[], Report]) -> str:
    """Return what a piece of work reports, as JSON; an error as its code and message."""
    try:
        return json.dumps(work())
    except OSError as error:
        reason = (error.strerror or "error").lower()
        failed = EnvironmentProblem(f"files cannot be written ({reason}): free space or permit it at every node")
        return json.dumps({"code": failed.code, "message": str(failed)})
    except Exception as error:
        known = public(error, "an actor")
        return json.dumps({"code": known.code, "message": str(known)})


def read_report(text: str, name: str) -> Report:
    """Return a report of the actor `name`. Raises the error that it holds."""
    report: Report = json.loads(text)
    if "code" in report:
        raise from_failure(wire.Failure(code=report["code"], message=report["message"]), name)
    return report
