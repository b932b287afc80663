"""A client that asks for something that is no token: a multiple of a row of the token table, or a row outside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from mpc.errors import MpcacheError
from parties.client.session import ClientSession
from tests.parties.conftest import VOCABULARY, make_checkpoint
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict

SHARE = ClientSession._share
PROMPT = [3, 1, 4]


def _sending(shape: tuple[int, ...], value: Tensor) -> Any:
    """A `_share` that puts other values in the prompt's place."""

    def share(self: ClientSession, name: str, step: int, known: tuple[int, ...], rows: Iterator[Tensor]) -> None:
        if name == "prompt":
            known, rows = shape, iter([value])
        SHARE(self, name, step, known, rows)

    return patch.object(ClientSession, "_share", share)


class ScaledPromptRow:
    """Read embedding and head from logits of 2^20 e_t, or from a row that the table does not have."""

    name: ClassVar[str] = "scaled-prompt-row"
    who: ClassVar[str] = "client"
    what: ClassVar[str] = "puts a multiple of a one-hot row, or an index outside the vocabulary, in a token's place"

    def run(self, folder: Path) -> Verdict:
        """A row is refused by its shape; an index outside the vocabulary is one of the vocabulary's."""
        with Deployment(folder / "deployment") as deployment:
            deployment.share(make_checkpoint(folder / "model"))
            client = deployment.client()
            honest = client.ask(PROMPT, 2, suite="masked", stop_ids=()).tokens
            row = torch.zeros(len(PROMPT), VOCABULARY, dtype=torch.int64)
            row[torch.arange(len(PROMPT)), torch.tensor(PROMPT)] = 1 << 20
            shown = "a scaled row was computed with"
            with _sending(tuple(row.shape), row):
                try:
                    client.ask(PROMPT, 2, suite="masked", stop_ids=())
                except MpcacheError as error:
                    shown = str(error)
            outside = torch.tensor(PROMPT) + torch.tensor([64, 1 << 40, -(1 << 62)])
            with _sending((len(PROMPT),), outside):
                folded = client.ask(PROMPT, 2, suite="masked", stop_ids=()).tokens
        refused = f"shape {list(row.shape)}" in shown
        return Verdict(
            refused and folded == honest,
            shown,
            "a client can say indices alone, and any 64-bit word stands for one of the vocabulary",
        )
