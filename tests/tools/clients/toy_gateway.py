"""A gateway with two toys, "letters" and "bytes", which notes the requests that it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers import GPT2Config, GPT2LMHeadModel

from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.settings import GatewaySettings
from parties.client.client import Client
from protocols.registry import SuiteSpec
from tests.launch.serve.gateway_harness import in_thread, write_bytes
from tests.parties.deployment import Deployment
from tests.parties.letters import write_letters
from tests.parties.toy import Toy

RECORDED = Path(__file__).parent / "recorded.jsonl"


class Recorder:
    """Notes requests in the order in which they come. client: who asks."""

    def __init__(self) -> None:
        self.client = ""
        self._noted: list[dict[str, Any]] = []

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return an application that notes what goes in."""

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            body = bytearray()

            async def received() -> Message:
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            await app(scope, received, send)
            self._noted.append({"client": self.client, "path": scope["path"], "body": json.loads(bytes(body))})

        return noting

    def text(self) -> str:
        """Return the requests, one a line."""
        return "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in self._noted)


def _checkpoint(folder: Path, vocabulary: int, positions: int, end: int) -> Path:
    sizes = {"vocab_size": vocabulary, "n_positions": positions, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)
    return folder


@contextmanager
def toy_gateway(folder: Path, recorder: Recorder | None = None) -> Iterator[str]:
    """A gateway that may see logits; its URL."""
    letters = write_letters(folder / "letters", _checkpoint(folder / "of-letters", 40, 32, 39))
    held = write_bytes(_checkpoint(folder / "bytes", 256, 200, 0))
    with Deployment(folder / "deployment", 2, Toy(rounds=1).program) as deployment:
        deployment.share(folder / "of-letters", "letters")
        deployment.share(held, "bytes")
        client = Client(deployment.config("client", "client"), keep_connections=True)
        words = Words.load(letters)
        catalogue = Catalogue(client, words, {"letters": words, "bytes": Words.load(held)})
        catalogue.refresh()
        catalogue.check()
        gateway = Gateway(client, catalogue, GatewaySettings(SuiteSpec("crypten"), allow_logits=True))
        if recorder is not None:
            gateway.app = recorder.around(gateway.app)
        try:
            with in_thread(gateway) as address:
                yield f"http://{address}"
        finally:
            client.close()
