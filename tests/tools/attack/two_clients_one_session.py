"""Two clients' calls under one session's id: one at each party."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import grpc

from mpc.errors import MpcacheError
from parties.client.model_reference import close_all
from parties.identity.certificates import check as check_identity
from parties.identity.trust import parties_of
from parties.transport.connection import open_channel
from tests.parties.deployment import AskingClient
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import ADVERSARY, PROMPT, live, shared


class TwoClientsOneSession:
    """Calls party0 as one client and party1 as another, with the same session id and manifest, so that each party computes
    for, and answers, another client."""

    name: ClassVar[str] = "two-clients-one-session"
    who: ClassVar[str] = "two clients"
    what: ClassVar[str] = "open one session, each at one party"

    def run(self, folder: Path) -> Verdict:
        """A few seconds."""
        with live(folder) as deployment:
            shared(deployment)
            mixed = _Mixed(deployment.config("client", "client"))
            try:
                tokens = mixed.ask(PROMPT, 2, suite="masked", stop_ids=()).tokens
            except MpcacheError as error:
                text = str(error)
                caught = "'client'" in text and f"'{ADVERSARY}'" in text
                return Verdict(caught, text, "no party has computed for another client than its peer")
        return Verdict(False, f"{len(tokens)} tokens were generated", "a session served two clients at once")


class _Mixed(AskingClient):
    """Speaks to the last party as `ADVERSARY`, to the others as itself."""

    @contextmanager
    def _connected(
        self, waiting: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> Iterator[list[grpc.Channel]]:
        other = check_identity(self.config.certificates, ADVERSARY)
        *first, last = parties_of(self.config)
        channels = [open_channel(self.identity, party) for party in first]
        channels.append(open_channel(other, last))
        try:
            yield channels
        finally:
            close_all(channels)
