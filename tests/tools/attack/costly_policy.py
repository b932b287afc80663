"""A policy that costs a thousand times what others do."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import ADVERSARY, live, shared

COSTLY = "quest:budget=0.9,page=1,skip=0"  # ranks every cached token, for every new one
LONG = [1 + n % 30 for n in range(20)]
ALLOWED = 84_000  # bytes for one token: a quarter more than the full cache takes here


class CostlyPolicy:
    """Asks for a policy that ranks every single token, whose cost grows with the square of the cache. Here with a
    small model, and limits in proportion; the limits of a server allow 4 GiB unless it is configured otherwise."""

    name: ClassVar[str] = "costly-policy"
    who: ClassVar[str] = "an authorised client"
    what: ClassVar[str] = "chooses a policy that costs the dealer and the parties a thousand times as much"

    def run(self, folder: Path) -> Verdict:
        """A few seconds."""
        with live(folder, limits={"max_token_dealt_bytes": ALLOWED}) as deployment:
            shared(deployment)
            usual = deployment.client().ask(LONG, 2, suite="masked", stop_ids=())
            text = _refused(deployment)
        if not text:
            return Verdict(False, "the session ran", "the dealer and the parties have paid for it")
        caught = len(usual.tokens) == 2 and "max_token_dealt_bytes" in text
        return Verdict(caught, text, "nothing was dealt for it, and other policies are served")


def _refused(deployment: Deployment) -> str:
    """What the adversary is told, empty when it is served."""
    try:
        deployment.client(ADVERSARY).ask(LONG, 2, suite="masked", policy=COSTLY, stop_ids=())
    except MpcacheError as error:
        return str(error)
    return ""
