"""A party shifts its output shares and watches the client: does it abort, finish, or go on, by what the token then is?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from parties.errors import WrongOutput
from parties.party.client_endpoint import ClientEndpoint
from parties.transport.resumable_stream import ResumableStream
from parties.wire import wire_pb2 as wire
from tests.parties.conftest import VOCABULARY, make_checkpoint
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict

PROMPT, NEW = [3, 17, 8], 4
Sent = dict[str, list[tuple[str, int]]]


class ShiftedOutputShare:
    """See the module."""

    name: ClassVar[str] = "shifted-output-share"
    who: ClassVar[str] = "one party, active"
    what: ClassVar[str] = "shifts its output share, to read the token from what the client does"

    def run(self, folder: Path) -> Verdict:
        """An honest session; one whose second token leaves the vocabulary; one whose second token becomes the stop token."""
        with Deployment(folder) as deployment:
            model = deployment.share(make_checkpoint(folder / "model"))

            def ask(shift: int) -> tuple[Sent, list[int], str]:
                with _recorded() as sent, patch.object(ClientEndpoint, "emit", _shifting(shift)):
                    try:
                        result = deployment.client().ask(
                            PROMPT, NEW, model=model, suite="masked", stop_ids=stop, fixed_length=True
                        )
                    except WrongOutput as error:
                        return sent, list(error.tokens), str(error)
                return sent, result.tokens, ""

            stop: list[int] = []
            honest, tokens, _ = ask(0)
            stop = [next(token for token in range(VOCABULARY) if token not in tokens)]
            outside, before, said = ask(VOCABULARY)
            stopped, ended, _ = ask(stop[0] - tokens[1])
        told = before == tokens[:1] and ended == [tokens[0], stop[0]] and bool(said)
        alike = honest == outside == stopped and set(honest) == {"party0", "party1"}
        return Verdict(
            alike and told,
            f"{honest['party1']} sent to party1 in every session; the client reads: {said}",
            "Messages of the client, their sizes and order: the same whatever its tokens were.",
        )


@contextmanager
def _recorded() -> Iterator[Sent]:
    """What clients send each party, in order, as it is queued: kinds and sizes, but for signs of life."""
    sent: Sent = {}
    put = ResumableStream._put

    def spy(self: ResumableStream, message: Any) -> None:
        if isinstance(message, wire.ClientMessage):
            sent.setdefault(self.peer, []).append((str(message.WhichOneof("content")), message.ByteSize()))
        put(self, message)

    with patch.object(ResumableStream, "_put", spy):
        yield sent


def _shifting(shift: int) -> Callable[..., bool]:
    """An `emit` at party 1 that adds to its share of the second token."""
    emit = ClientEndpoint.emit

    def shifted(self: ClientEndpoint, step: int, share: Any) -> bool:
        if step == 1 and self.session.role == "party1":
            share = replace(share, share=share.share + shift)
        return emit(self, step, share)

    return shifted
