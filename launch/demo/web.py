"""`mpcache demo --web`: a gateway's page, from before the roles run, with what only a demo may show.

One person is client, model owner, parties and dealer here. So the page shows beside what every gateway's page does: how far
the deployment is, what each party opens (uniform noise, `launch.local.openings`), what the model owner sent, and which
tokens a cache policy keeps (`launch.demo.kept`). All of it is behind the gateway's own key.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from launch.demo.kept import kept_tokens
from launch.demo.talks import Talk
from launch.local.deployment import OWNER, LocalDeployment, local_deployment
from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.guard import HEALTH, Guard
from launch.serve.gateway.page import PAGE, page
from launch.serve.gateway.serving import listen, server
from launch.serve.gateway.settings import GatewaySettings
from models.checkpoint import load_checkpoint
from models.generation import PlainModel
from mpc.errors import MpcacheError
from parties.client.client import Client, GenerationResult
from parties.client.request import GenerationRequest
from parties.events import log

DEMO = "/demo"
END_SECONDS = 10.0


@dataclass(frozen=True)
class WebDemo:
    """What is shown. listen: where the page is, "127.0.0.1:0" for any free port."""

    talk: Talk
    parties: int = 2
    policy: str = "full"
    listen: str = "127.0.0.1:0"


class NotingClient(Client):
    """A client that keeps what it was asked last, and with which result."""

    asked: GenerationRequest | None = None
    given: GenerationResult | None = None

    def generate(self, request: GenerationRequest, **options: Any) -> GenerationResult:
        """Generate as `Client` does."""
        self.given, self.asked = None, request
        self.given = super().generate(request, **options)
        return self.given


class DemoApp:
    """The ASGI application: the page and `/demo` from the start, all else by the gateway, once there is one."""

    def __init__(self, demo: WebDemo, settings: GatewaySettings) -> None:
        self.settings = settings
        self.phase = "starting the roles' processes"
        self.shared = (0, 0)
        self.gateway: Gateway | None = None
        self.client: NotingClient | None = None
        self.deployment: LocalDeployment | None = None
        self._demo = demo
        self._plain: PlainModel | None = None
        self._kept: tuple[GenerationRequest, dict[str, Any] | None] | None = None
        self._lock = threading.Lock()
        self._guarded = Guard(self._own, settings)

    def share(self, stage: str, done: int, total: int) -> None:
        """Note how many bytes of shares the model owner has sent."""
        self.shared = (done, total) if total else self.shared
        self.phase = "the model owner shares the weights" if total else stage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self.gateway
        if gateway is None or scope.get("path") in (PAGE, DEMO):
            await self._guarded(scope, receive, send)
        else:
            await gateway.app(scope, receive, send)

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        response: Response
        if scope["method"] != "GET":
            response = ApiError(405, "this path does not take this method").response()
        elif path == PAGE:
            response = page(demo=True)
        elif path == DEMO:
            response = JSONResponse(await asyncio.to_thread(self.to_json), 200, {"Cache-Control": "no-store"})
        elif path == HEALTH:
            response = JSONResponse({"status": "ok"})
        else:
            response = ApiError(503, f"not ready yet: {self.phase}", "server_error", headers={"Retry-After": "2"}).response()
        await response(scope, receive, send)

    # ---- what is told ------------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """Return what the demo shows beside the gateway's `/live`."""
        demo, children = self._demo, [] if self.deployment is None else self.deployment.children
        return {
            "phase": self.phase,
            "ready": self.gateway is not None,
            "shared": list(self.shared),
            "model": demo.talk.name,
            "policy": demo.policy,
            "suite": demo.talk.suite.name,
            "example": {**vars(demo.talk.example)},
            "processes": {child.name: child.pid for child in list(children) if child.name != OWNER},
            "openings": {child.name: child.seen for child in list(children) if child.seen is not None},
            "client": self._client_sees(),
            "kept": self._kept_of_last(),
        }

    def _client_sees(self) -> dict[str, str] | None:
        """Return the newest prompt as the model reads it, and its answer."""
        if self.client is None or self.gateway is None or (asked := self.client.asked) is None:
            return None
        words = next(iter(self.gateway.catalogue.all())).words.tokenizer
        answer = "" if self.client.given is None else words.decode(self.client.given.tokens)
        return {"prompt": words.decode(list(asked.prompt_ids)), "answer": answer}

    def _kept_of_last(self) -> dict[str, Any] | None:
        """Return which of the newest prompt's tokens the policy keeps, once its answer is there."""
        if self.client is None or self.gateway is None or self.client.given is None or self.client.asked is None:
            return None
        asked = self.client.asked
        with self._lock:
            if self._kept is None or self._kept[0] is not asked:
                self._kept = asked, self._map(asked)
            return self._kept[1]

    def _map(self, asked: GenerationRequest) -> dict[str, Any] | None:
        assert self.gateway is not None
        try:
            if self._plain is None:
                self._plain = PlainModel(load_checkpoint(self._demo.talk.model))
            layers = kept_tokens(self._plain, asked.prompt_ids, asked.policy)
        except MpcacheError as error:
            log.warning("the demo has no map of kept tokens: %s", error)
            return None
        words = next(iter(self.gateway.catalogue.all())).words.tokenizer
        tokens = [words.decode([token]) for token in asked.prompt_ids]
        return None if layers is None else {"policy": asked.policy, "tokens": tokens, "layers": layers}


@contextmanager
def served(demo: WebDemo) -> Iterator[tuple[str, DemoApp]]:
    """Serve the page in a thread, without roles so far; give its address, key included, and the application.

    Raises what `launch.serve.gateway.serving.listen` does.
    """
    key = secrets.token_hex(16)
    settings = GatewaySettings(demo.talk.suite, demo.policy, keys=(key.encode(),))
    app = DemoApp(demo, settings)
    listener, address = listen(demo.listen, "--port")
    running = server(app, settings)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{address}/#key={key}", app
    finally:
        running.should_exit = True
        thread.join(END_SECONDS)
        listener.close()


@contextmanager
def running(demo: WebDemo, app: DemoApp) -> Iterator[LocalDeployment]:
    """Run the roles, share the model, and let the gateway answer; all of it ends with the block."""
    with local_deployment(demo.parties, show_openings=True) as deployment:
        app.deployment = deployment
        deployment.share_model(demo.talk.model, demo.talk.name, on_progress=app.share)
        app.phase = "asking the parties"
        client = NotingClient(deployment.client, keep_connections=True)
        try:
            catalogue = Catalogue(client, Words.load(demo.talk.words), {})
            catalogue.refresh()
            catalogue.check()
            app.client, app.gateway, app.phase = client, Gateway(client, catalogue, app.settings), "ready"
            yield deployment
        finally:
            app.gateway, app.phase = None, "ended"
            client.close()


def show(demo: WebDemo, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, or until a role's process dies (raises `ProcessEnded`). say: prints a line for the person."""
    with served(demo) as (address, app):
        say(f"Open this address in a browser of this machine; it has the page's key in it:\n{address}")
        with running(demo, app) as deployment:
            say(f"{demo.talk.name} is shared among {demo.parties} parties; ask away. Ctrl-C ends everything.")
            deployment.watch()
