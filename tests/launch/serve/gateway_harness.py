"""A gateway in this process, before a deployment in this process whose toy program has known answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI

from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.serving import listen, server
from launch.serve.gateway.settings import GatewaySettings
from parties.client.client import Client
from protocols.registry import SuiteSpec
from tests.models.random_checkpoints import byte_tokenizer
from tests.parties.deployment import Deployment
from tests.parties.letters import TEMPLATE, write_letters
from tests.parties.toy import Toy

NO_KEY = "none"


class Running:
    """What a test may look at. url: of the API; toy: slows the parties down."""

    def __init__(self, gateway: Gateway, address: str, deployment: Deployment, toy: Toy, letters: Path) -> None:
        self.gateway = gateway
        self.address = address
        self.url = f"http://{address}/v1"
        self.deployment = deployment
        self.toy = toy
        self.letters = letters

    def openai(self, **options: Any) -> OpenAI:
        """The client of the package openai; it does not try again."""
        return OpenAI(base_url=self.url, **{"api_key": NO_KEY, "max_retries": 0, "timeout": 60, **options})

    def async_openai(self) -> AsyncOpenAI:
        """The asynchronous one."""
        return AsyncOpenAI(base_url=self.url, api_key=NO_KEY, max_retries=0, timeout=60)

    def sessions(self) -> int:
        """Sessions at all servers."""
        return sum(len(one.sessions.all()) for one in self.deployment.servers.values())


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it holds in time."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def deployed(folder: Path, checkpoint: Path, name: str = "tiny", **settings: Any) -> Iterator[tuple[Deployment, Toy, Path]]:
    """Dealer, two parties, a shared model of this name and its tokenizer's folder."""
    toy = Toy()
    with Deployment(folder / "deployment", 2, toy.program, **settings) as deployment:
        deployment.share(checkpoint, name)
        yield deployment, toy, write_letters(folder / "letters", checkpoint)


def write_bytes(checkpoint: Path) -> Path:
    """Put a tokenizer of bytes with a chat template into the folder of a checkpoint of 256 tokens."""
    byte_tokenizer(checkpoint)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return checkpoint


@contextmanager
def deployed_bytes(folder: Path, checkpoint: Path, **settings: Any) -> Iterator[tuple[Deployment, Toy, Path]]:
    """The same with a tokenizer of bytes, for a checkpoint of 256 tokens, in its own folder."""
    write_bytes(checkpoint)
    toy = Toy(rounds=1)
    with Deployment(folder / "deployment", 2, toy.program, **settings) as deployment:
        deployment.share(checkpoint, "tiny")
        yield deployment, toy, checkpoint


@contextmanager
def in_thread(gateway: Gateway) -> Iterator[str]:
    """A gateway's server in a thread; its address."""
    listener, address = listen("127.0.0.1:0")
    running = server(gateway.app, gateway.settings)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def serving(
    deployment: Deployment, toy: Toy, letters: Path, client: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Running]:
    """A gateway that serves in a thread."""
    asks = Client(deployment.config("client", "client", **(client or {})), keep_connections=True)
    catalogue = Catalogue(asks, Words.load(letters), {})
    catalogue.refresh()
    catalogue.check()
    gateway = Gateway(asks, catalogue, GatewaySettings(SuiteSpec("crypten"), **settings))
    try:
        with in_thread(gateway) as address:
            yield Running(gateway, address, deployment, toy, letters)
    finally:
        asks.close()
