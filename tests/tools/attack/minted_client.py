"""The authority makes itself a client: a certificate of the client's name for a key of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import AskingClient, Deployment
from tests.parties.toy import Toy
from tests.tools.attack.contract import Verdict
from tests.tools.attack.minting import OWNERS_KEY, mint


class MintedClient:
    """Caught: it may neither list models nor generate, while the client itself may."""

    name: ClassVar[str] = "minted-client"
    who: ClassVar[str] = "the authority"
    what: ClassVar[str] = "asks a model as a client whose certificate it made"

    def run(self, folder: Path) -> Verdict:
        """A session of it, and one of the client."""
        with Deployment(folder / "deployment", 2, Toy().program) as deployment:
            model = deployment.share(make_checkpoint(folder / "checkpoint"))
            mint(deployment, folder / "minted", "client", "client")
            false_client = AskingClient(deployment.config("client", "client", certificates=folder / "minted"))
            said = []
            for work in (false_client.models, lambda: false_client.ask([3], 1, model=model, suite="crypten")):
                try:
                    work()
                    said.append("no error: it was served")
                except MpcacheError as error:
                    said.append(str(error))
            served = deployment.client().ask([3], 1, model=model).tokens == [3]
        refused = all("the key of 'client' is not the one that is expected" in text for text in said)
        return Verdict(refused and served, said[1], f"{OWNERS_KEY}; the client itself is served")
