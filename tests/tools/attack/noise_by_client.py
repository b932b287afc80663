"""A client that chooses its noise reads logits: it sends a share of noise, or asks for a temperature of its own making."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from mpc.errors import MpcacheError
from mpc.fixed_point import encode
from parties.client.session import ClientSession
from parties.wire.manifest import Manifest
from tests.parties.conftest import VOCABULARY, make_checkpoint
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict

PROMPT, NEW = [3, 17, 8], 2
FOREIGN: dict[str, Callable[[str], Any]] = {  # what a party is told of the temperature
    "a temperature of 1 000 000": lambda peer: 1e6,
    "a temperature of 0": lambda peer: 0.0,
    "no temperature": lambda peer: None,
    "another temperature at each party": lambda peer: 1.0 if peer == "party0" else 2.0,
}


class NoiseChosenByClient:
    """See the module."""

    name: ClassVar[str] = "noise-chosen-by-client"
    who: ClassVar[str] = "a client that may sample"
    what: ClassVar[str] = "chooses the noise of its samples, or a temperature that wraps a ring, to read logits"

    def run(self, folder: Path) -> Verdict:
        """One session with noise of its own behind the prompt, and one with each foreign temperature."""
        with Deployment(folder) as deployment:
            model = deployment.share(make_checkpoint(folder / "model"))

            def attempt() -> str:
                try:
                    deployment.client().ask(
                        PROMPT, NEW, model=model, suite="masked", decoding="sample", temperature=1.0, stop_ids=()
                    )
                except MpcacheError as error:
                    return str(error)
                return ""

            with patch.object(ClientSession, "_upload", _with_noise):
                said = {"noise of its own": attempt()}
            for what, temperature in FOREIGN.items():
                with patch.object(ClientSession, "run", _lying(temperature)):
                    said[what] = attempt()
        accepted = [what for what, message in said.items() if not message]
        return Verdict(
            not accepted,
            "; ".join(f"{what}: {message or 'ACCEPTED'}" for what, message in said.items()),
            "The dealer deals the noise of a temperature that all parties agree on; a client says nothing but its prompt.",
        )


def _with_noise(self: ClientSession) -> None:
    """An upload as it was when clients gave the noise: one logit is raised by a number of its choice."""
    _upload(self)
    noise = torch.zeros(NEW, VOCABULARY)
    noise[:, 7] = 20.0

    def rows() -> Iterator[Tensor]:
        yield from encode(noise, 14)

    self._share("noise", 0, (NEW, VOCABULARY), rows())


_upload, _run = ClientSession._upload, ClientSession.run


def _lying(temperature: Callable[[str], Any]) -> Callable[..., None]:
    """A session whose manifest says what `temperature` makes of the party's name."""

    class Lying(Manifest):
        def __init__(self, told: Manifest, peers: list[str]) -> None:
            super().__init__(**told.model_dump())
            object.__setattr__(self, "_peers", iter(peers))

        def canonical(self) -> bytes:
            values = {**self.model_dump(mode="json"), "temperature": temperature(next(self._peers))}
            return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    def run(self: ClientSession, *arguments: Any) -> None:
        self.manifest = Lying(self.manifest, [p.name for p in self.config.parties])
        _run(self, *arguments)

    return run
