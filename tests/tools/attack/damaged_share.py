"""A byte of a stored share is changed."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import PROMPT, live, shared


class DamagedShare:
    """Flips one bit of the last party's share of a weight on disk: an answer must not be made from it."""

    name: ClassVar[str] = "damaged-share"
    who: ClassVar[str] = "a failing disk"
    what: ClassVar[str] = "changes one bit of a stored share, so that answers are wrong unseen"

    def run(self, folder: Path) -> Verdict:
        """A few seconds."""
        with live(folder) as deployment:
            model = shared(deployment)
            file = deployment.folder / "store-party1" / model.id / "0000.safetensors"
            data = bytearray(file.read_bytes())
            data[-1] ^= 0x40
            file.write_bytes(data)
            try:
                tokens = deployment.client().ask(PROMPT, 2, suite="masked", stop_ids=()).tokens
            except MpcacheError as error:
                caught = file.name in str(error) and "share the model again" in str(error)
                return Verdict(caught, str(error), "no token was computed from the damaged weight")
        return Verdict(False, f"{len(tokens)} tokens were generated", "a wrong answer looks like any other")
