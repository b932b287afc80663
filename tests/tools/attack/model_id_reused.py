"""Other weights under the id of a model that was there before, to have them masked as that one was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import read_architecture
from mpc.errors import MpcacheError
from parties.model_owner.model_owner import remove_models, share_model
from parties.tapes.deal import DealOrder, DealSpec, deal
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict
from tests.tools.attack.live import ADVERSARY, PROMPT, checkpoint, live

THIEF = "thief"


class ModelIdReused:
    """A model's first session opens its weights under masks of a load. Its owner takes it away; another owner, who works
    with a party, stores weights that it knows under the same id. A second session of the same load would open them under
    the same masks, and the difference to what the party has kept is the first owner's weights."""

    name: ClassVar[str] = "model-id-reused"
    who: ClassVar[str] = "a model owner together with a party and a client"
    what: ClassVar[str] = "stores known weights under a used id, to read the masks of the weights before"

    def run(self, folder: Path) -> Verdict:
        """A few seconds."""
        with live(folder, start=False, model_owners=["owner", THIEF]) as deployment:
            deployment.add(THIEF, "model-owner")
            secret = checkpoint(deployment)
            dealer = deployment.config("dealer", "dealer")
            architecture = read_architecture(secret)
            tapes = deployment.folder / "tapes"
            deal(DealOrder(dealer, architecture, DealSpec([len(PROMPT)], 2, 2)), tapes)
            for name in deployment.names:
                deployment.start_one(name, tapes=tapes / name)
            owner = deployment.config("model-owner", "owner")
            model = share_model(owner, secret, "secret")
            deployment.client().ask(PROMPT, 2, model=model, suite="masked", stop_ids=())
            remove_models(owner, [model.id])
            _steal_id(deployment, model.id, _known(secret, deployment.folder / "known"))
            try:
                deployment.client(ADVERSARY).ask(PROMPT, 2, model=model, suite="masked", stop_ids=())
            except MpcacheError as error:
                caught = "another storing" in str(error)
                return Verdict(caught, str(error), "the masks of a load are for one storing of one model")
        return Verdict(False, "a second session opened weights under the masks of the first", "the weights are known")


def _known(secret: Path, folder: Path) -> Path:
    """A checkpoint of the same architecture whose weights are all zero."""
    shutil.copytree(secret, folder)
    file = folder / "model.safetensors"
    save_file({name: torch.zeros_like(weight) for name, weight in load_file(file).items()}, file)
    return folder


def _steal_id(deployment: Deployment, id: str, known: Path) -> None:
    with patch("parties.model_owner.model_owner.new_id", lambda: id):
        share_model(deployment.config("model-owner", THIEF), known, "known")
