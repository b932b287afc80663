"""The authority makes itself a party: a certificate of party1's name for a key of its own, at party1's address."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from parties.party.compute_party import ComputePartyServer
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy
from tests.tools.attack.calls import join
from tests.tools.attack.contract import Verdict
from tests.tools.attack.minting import OWNERS_KEY, mint


class MintedParty:
    """Caught: no share reaches it, and neither party nor dealer answers it."""

    name: ClassVar[str] = "minted-party"
    who: ClassVar[str] = "the authority"
    what: ClassVar[str] = "takes a party's place with a certificate of its name"

    def run(self, folder: Path) -> Verdict:
        """The owner shares a model with it, and it calls party0 and the dealer."""
        deployment = Deployment(folder / "deployment", 2, Toy().program, connect_seconds=3)
        minted = mint(deployment, folder / "minted", "party1", "party")
        theirs = deployment.config("party", "party1", certificates=folder / "minted", insecure_trust_authority=True)
        false_party = ComputePartyServer(theirs, Toy().program)
        try:
            deployment.start_one("dealer")
            deployment.start_one("party0")
            false_party.start()
            shown = _error(lambda: deployment.share(make_checkpoint(folder / "checkpoint")))
            calls = [_error(partial(join, deployment, minted, name)) for name in ("party0", "dealer")]
            held = false_party.store.models()
        finally:
            false_party.stop()
            deployment.stop()
        refused = all("the key of 'party1' is not the one that is expected" in text for text in (shown, *calls))
        return Verdict(refused and not held, shown, f"{OWNERS_KEY}; it holds {len(held)} shared models")


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except MpcacheError as error:
        return str(error)
    return "no error: it was taken for party1"
