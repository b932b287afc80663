"""Whoever stole a client's key goes on using it after the key was revoked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from parties.identity.revocation import revoke
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy, slow
from tests.tools.attack.contract import Verdict

SECONDS = 10.0


class RevokedClient:
    """Caught: the session that runs ends, and the next call is refused, without a restart of any server."""

    name: ClassVar[str] = "revoked-client"
    who: ClassVar[str] = "whoever has a client's stolen key"
    what: ClassVar[str] = "goes on after the key was revoked"

    def run(self, folder: Path) -> Verdict:
        """A long session, during which the key is revoked; then another call."""
        toy = Toy()
        said: list[str] = []
        with Deployment(folder / "deployment", 2, toy.program, deadline_seconds=2) as deployment:
            model = deployment.share(make_checkpoint(folder / "checkpoint"))
            toy.before_round = slow(0.2)
            client, begun = deployment.client(), threading.Event()

            def session() -> None:
                try:
                    client.ask([1], 30, model=model, stop_ids=(), on_token=lambda token: begun.set())
                    said.append("no error: the session went on")
                except MpcacheError as error:
                    said.append(str(error))

            running = threading.Thread(target=session)
            running.start()
            begun.wait(SECONDS)
            revoke(deployment.certificates, deployment.fingerprints["client"], "client, stolen")
            began = time.monotonic()
            running.join(SECONDS)
            took = time.monotonic() - began
            toy.before_round = Toy().before_round
            try:
                deployment.servers["party0"].permissions.may_generate("client")  # its grant is still there
                deployment.client().ask([1], 1, model=model)
                said.append("no error: it was served")
            except MpcacheError as error:
                said.append(str(error))
        caught = "the key of 'client' was revoked at" in said[0] and "the key of 'client' is revoked" in said[1]
        return Verdict(caught, said[0], f"its session ended {took:.1f} s after the key was revoked")
