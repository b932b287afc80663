"""The typed errors of sessions, beside those of `mpc.errors` that every floor raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mpc.errors import MpcacheError
from protocols.range_findings import RangeFinding, summary


class PartialAnswer(Protocol):
    """What `RangeExceeded` carries of a generation that ended early (`parties.client.client.GenerationResult`)."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens so far. Secret."""


class Busy(MpcacheError):
    """A server has as many sessions as it may; ask again later."""

    code = "busy"


class InternalError(MpcacheError):
    """Something went wrong that is not a user's mistake; the details are in that role's log."""

    code = "internal"


class SessionFinished(MpcacheError):
    """Not a failure: the client has what it wanted and ended the session in good order."""

    code = "finished"


class Cancelled(MpcacheError):
    """The caller gave the generation up."""

    code = "cancelled"


class RangeExceeded(MpcacheError):
    """A value left its declared range on the way to a token, so the answer ends before that token.

    findings: what left its range, in the order of the computation. text: the answer so far, right up to precision; None
    where no text was asked for. result: the generation with its tokens so far; None outside a session. All of it, the
    message included, is the client's: this error is made where the session's outputs are opened, and crosses no wire.
    """

    code = "range-exceeded"

    def __init__(
        self, findings: Sequence[RangeFinding], text: str | None = None, result: PartialAnswer | None = None
    ) -> None:
        super().__init__(summary(findings))
        self.findings = tuple(findings)
        self.text = text
        self.result = result


class WrongOutput(MpcacheError):
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
