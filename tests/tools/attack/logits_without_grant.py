"""A client that may generate, and no more is said of it, asks for logits: each answer would give it the vocabulary's."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mpc.errors import PermissionRefused
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict

PROMPT = [3, 17, 8]
GRANT = "clients: [{name: client, decoding: [greedy, sample, logits]}]"


class LogitsWithoutGrant:
    """See the module."""

    name: ClassVar[str] = "logits-without-grant"
    who: ClassVar[str] = "a client with the usual grant"
    what: ClassVar[str] = "asks for decoding 'logits'"

    def run(self, folder: Path) -> Verdict:
        """Logits are refused by the default and by a party that alone does not grant them; greedy and sample are not."""
        granted = [{"name": "client", "decoding": ["greedy", "sample", "logits"]}]
        said: list[str] = []
        with Deployment(folder, clients=["client"]) as deployment:
            model = deployment.share(make_checkpoint(folder / "model"))
            client = deployment.client()
            for round in range(2):
                try:
                    client.ask(PROMPT, 1, model=model, suite="masked", decoding="logits")
                except PermissionRefused as error:
                    said.append(str(error))
                if round == 0:
                    deployment.servers["party0"].stop()
                    deployment.start_one("party0", clients=granted)
            tokens = client.ask(PROMPT, 1, model=model, suite="masked", stop_ids=()).tokens
            sampled = client.ask(PROMPT, 1, model=model, suite="masked", decoding="sample", stop_ids=()).tokens
        caught = len(said) == 2 and all(GRANT in message for message in said) and len(tokens) == len(sampled) == 1
        return Verdict(caught, said[-1] if said else "logits were given", "Without a grant at every party there are none.")
