"""Another user of the client's machine asks the gateway, which listens at 127.0.0.1 as usual."""

from __future__ import annotations

import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import yaml

from launch.local.processes import Processes
from launch.serve.gateway.settings import KEY_FILE
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.parties.letters import write_letters
from tests.parties.toy import Toy
from tests.tools.attack.contract import Verdict


class GatewayWithoutKey:
    """Caught: without the key, which only the user of the gateway may read, nothing is answered."""

    name: ClassVar[str] = "gateway-without-key"
    who: ClassVar[str] = "another user of the client's machine"
    what: ClassVar[str] = "asks the gateway at 127.0.0.1 for the models"

    def run(self, folder: Path) -> Verdict:
        """`mpcache serve` as a user starts it, asked without a key, with a wrong one, and with its own."""
        with Deployment(folder / "deployment", 2, Toy().program) as deployment:
            checkpoint = make_checkpoint(folder / "checkpoint")
            deployment.share(checkpoint)
            letters = write_letters(folder / "letters", checkpoint)
            values = deployment.values("client", "client")
            config = folder / "client.yaml"
            config.write_text(yaml.safe_dump({**values, "certificates": str(deployment.certificates)}))
            words = [
                "serve",
                "--supervised",
                "--config",
                str(config),
                "--tokenizer",
                str(letters),
            ]
            with Processes(folder) as processes:
                child = processes.start("gateway", [*words, "--listen", "127.0.0.1:0"])
                processes.wait_ready([child])
                assert child.ready is not None
                url = f"http://{child.ready['address']}/v1/models"
                file = folder / KEY_FILE
                key = file.read_text().splitlines()[-1] if file.exists() else ""
                answers = [_status(url, given) for given in (None, "0" * 64, key)]
                private = file.exists() and stat.S_IMODE(file.stat().st_mode) == 0o600
                printed = sum(key in line for line in child._lines) if key else 0
        shown = f"HTTP {answers[0]} without a key, {answers[1]} with a wrong one, {answers[2]} with its own"
        return Verdict(
            answers == [401, 401, 200] and private and printed == 0, shown, "the key lies in a file of mode 0600, in no log"
        )


def _status(url: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
