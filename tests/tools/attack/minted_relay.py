"""The authority sits between client and party with certificates of both names, and relays whatever they say."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy
from tests.tools.attack.contract import Verdict
from tests.tools.attack.minting import OWNERS_KEY, MintedRelay, mint


class RelayWithMintedCertificates:
    """Caught: it reads no byte of what the client says, even if it lets the first connections through untouched, on which
    the client looks at the party's certificate."""

    name: ClassVar[str] = "relay-with-minted-certificates"
    who: ClassVar[str] = "the authority"
    what: ClassVar[str] = "relays between client and party, in the clear in the middle"

    def run(self, folder: Path) -> Verdict:
        """Sessions through a relay that opens every connection, all but the first, and all but the first two."""
        said, read = [], []
        with Deployment(folder / "deployment", 2, Toy().program) as deployment:
            model = deployment.share(make_checkpoint(folder / "checkpoint"))
            party = mint(deployment, folder / "minted", "party0", "party")
            client = mint(deployment, folder / "minted", "client", "client")
            for spared in range(3):
                relay = MintedRelay(deployment.addresses[0], party, client, spared)
                near = deployment.values("client", "client")["parties"]
                near[0] = {**near[0], "address": relay.address}
                try:
                    deployment.client(parties=near, connect_seconds=2).ask([3], 1, model=model)
                    said.append(f"no error, over {relay.connections} connections")
                except MpcacheError as error:
                    said.append(str(error))
                finally:
                    relay.close()
                read.append(relay.read)
        refused = all("the key of 'party0' is not the one that is expected" in text for text in said[:2])
        untouched = said[2] == "no error, over 2 connections"  # one look and one channel: nothing was left to open
        return Verdict(refused and untouched and not any(read), said[0], f"{OWNERS_KEY}; it has read {sum(read)} bytes")
