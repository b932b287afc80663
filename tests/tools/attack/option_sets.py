"""A load of all weights for every set of options."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import ADVERSARY, PROMPT, live, shared

SETS = 5


class OptionSets:
    """Asks with another bound of the residual stream each time: every set of options needs weights that are masked anew. The
    weights that another client's sessions use must stay loaded, and the adversary's not pile up."""

    name: ClassVar[str] = "option-sets"
    who: ClassVar[str] = "an authorised client"
    what: ClassVar[str] = "fills memory with loads of weights, and drives out those of other clients"

    def run(self, folder: Path) -> Verdict:
        """A few seconds."""
        with live(folder) as deployment:
            shared(deployment)
            deployment.client().ask(PROMPT, 1, suite="masked", stop_ids=())
            before = _held(deployment)
            for bound in range(8, 8 + SETS):
                options = {"residual": bound}
                deployment.client(ADVERSARY).ask(PROMPT, 1, suite="masked", options=options, stop_ids=())
            after = _held(deployment)
        kept = all(old <= new for old, new in zip(before, after, strict=True))
        most, limit = max(map(len, after)), 2
        detail = f"after {SETS} sets of options the other client's weights are {'still' if kept else 'no longer'} loaded"
        return Verdict(kept and most <= limit, f"{most} loads are kept at a server, at most {limit} may be", detail)


def _held(deployment: Deployment) -> list[set[str]]:
    """Ids of the loads that each server keeps."""
    return [set(server.weight_cache._held) for server in deployment.servers.values()]
