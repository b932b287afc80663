"""The HTTP application: routes, bounded bodies, one generation per request, whole answers and streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from launch.serve.gateway import embeddings, requests
from launch.serve.gateway.access import Access, Metrics, told
from launch.serve.gateway.bodies import Choices, model_body
from launch.serve.gateway.catalogue import Catalogue, Served
from launch.serve.gateway.errors import ApiError, from_error, invalid
from launch.serve.gateway.exchange import GONE_STATUS, EventStream, Exchange, Shape
from launch.serve.gateway.generation import Generation, TextRequest, Watch
from launch.serve.gateway.guard import HEALTH, Guard
from launch.serve.gateway.live import Live
from launch.serve.gateway.page import PAGE, page
from launch.serve.gateway.parameters import ChatParameters, CompletionParameters, Parameters, parse
from launch.serve.gateway.patience import Patience
from launch.serve.gateway.places import Places
from launch.serve.gateway.response_bodies import ResponseShape
from launch.serve.gateway.responses import ResponsesParameters
from launch.serve.gateway.settings import GatewaySettings
from mpc.errors import MpcacheError
from parties.client.cancellation import Cancellation
from parties.client.client import Client
from parties.client.prefixes import OFF
from parties.wire.error_codec import public

CLIENT_ID = "x-client-request-id"  # OpenAI's name for it
MOST_ID = 512  # characters
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Gateway:
    """Answers OpenAI's requests with private generations of `client`. `app` is the ASGI application."""

    def __init__(self, client: Client, catalogue: Catalogue, settings: GatewaySettings) -> None:
        self.client = client
        self.catalogue = catalogue
        self.settings = settings
        self.metrics = Metrics()
        self.live = Live()
        self.places = Places(settings.max_concurrent, settings.max_queue, self._count_places)
        routes = [
            Route(PAGE, _caught(self._page), methods=["GET"]),
            Route("/live", _caught(self._live), methods=["GET"]),
            Route(HEALTH, _caught(self._health), methods=["GET"]),
            Route("/ready", _caught(self._ready), methods=["GET"]),
            Route("/metrics", _caught(self._metrics), methods=["GET"]),
            Route("/v1/models", _caught(self._models), methods=["GET"]),
            Route("/v1/models/{model:path}", _caught(self._model), methods=["GET"]),
            Route("/v1/completions", _caught(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", _caught(self._chat), methods=["POST"]),
            Route("/v1/responses", _caught(self._responses), methods=["POST"]),
            Route("/v1/embeddings", _caught(self._embeddings), methods=["POST"]),
        ]
        handlers: Any = {HTTPException: _http_error}
        known = Starlette(routes=routes, exception_handlers=handlers)
        known.router.redirect_slashes = False  # a redirection has no body that a client of the API understands
        guarded = Guard(known, settings)
        self.app: ASGIApp = Access(guarded, self.metrics, frozenset(route.path for route in routes))

    @property
    def running(self) -> int:
        """Requests that occupy the parties."""
        return self.places.running

    def _count_places(self) -> None:
        self.metrics.running.set(self.places.running)
        self.metrics.waiting.set(self.places.waiting)

    # ---- routes ------------------------------------------------------------------------------------------------------
    async def _page(self, request: Request) -> Response:
        return page()

    async def _live(self, request: Request) -> Response:
        return JSONResponse(self.live.to_json(request.query_params.get("request", "")))

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        await asyncio.to_thread(self._refresh)
        await asyncio.to_thread(self.catalogue.check)
        await asyncio.to_thread(self.client.check_reached, self._patience())
        now = {"running": self.running, "waiting": self.places.waiting}
        return JSONResponse({"status": "ready", **now, "max_concurrent": self.settings.max_concurrent})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        await asyncio.to_thread(self._refresh)
        return JSONResponse({"object": "list", "data": [model_body(served) for served in self.catalogue.all()]})

    async def _model(self, request: Request) -> Response:
        if not (name := request.path_params["model"]):
            raise invalid("no model is named: GET /v1/models lists them", "model", "model_not_found", 404)
        served = await self._served(name)
        return JSONResponse(model_body(served))

    async def _completions(self, request: Request) -> Response:
        parameters = parse(CompletionParameters, await self._body(request), self.settings.drop_unsupported)
        served = (await self._served(parameters.model, parameters.prefix or self.settings.prefix)).of_kind(encoder=False)
        asked = await asyncio.to_thread(requests.completion, parameters, served, self.settings)
        shape = Choices(False, parameters.model, parameters.include_usage)
        return await self._answer(request, asked, shape, parameters)

    async def _chat(self, request: Request) -> Response:
        parameters = parse(ChatParameters, await self._body(request), self.settings.drop_unsupported)
        served = (await self._served(parameters.model, parameters.prefix or self.settings.prefix)).of_kind(encoder=False)
        asked = await asyncio.to_thread(requests.chat, parameters, served, self.settings)
        call = None if parameters.format is None else parameters.format.call
        shape = Choices(True, parameters.model, parameters.include_usage, call)
        return await self._answer(request, asked, shape, parameters)

    async def _responses(self, request: Request) -> Response:
        parameters = parse(ResponsesParameters, await self._body(request), self.settings.drop_unsupported)
        served = (await self._served(parameters.model, parameters.prefix or self.settings.prefix)).of_kind(encoder=False)
        asked = await asyncio.to_thread(requests.chat, parameters, served, self.settings)
        shape = ResponseShape(parameters.said(), None if parameters.format is None else parameters.format.call)
        return await self._answer(request, asked, shape, parameters)

    async def _embeddings(self, request: Request) -> Response:
        parameters = embeddings.parse_parameters(await self._body(request))
        served = (await self._served(parameters.model)).of_kind(encoder=True)
        asked = await asyncio.to_thread(embeddings.asked, parameters, served, self.settings)
        cancellation = Cancellation()
        watcher = await self._take_place(request, cancellation.cancel)
        began = time.perf_counter()
        try:
            rows = await asyncio.to_thread(
                asked.rows, self.client, cancellation, Patience(self.settings.party_seconds).progress
            )
        finally:
            watcher.cancel()
            self.places.leave(time.perf_counter() - began)
        model, count = served.reference.id, len(rows)
        told("embeddings", f"embeddings 200, model {model}, {count} texts", status=200, model=model, texts=count)
        return JSONResponse(asked.body(rows))

    async def _take_place(self, request: Request, gone: Callable[[], None]) -> asyncio.Task[None]:
        """Wait for a place at the parties; return the task that from then on calls `gone` when the connection is closed.

        Raises `ApiError` 429 where too many wait, and for a connection that was closed meanwhile.
        """
        watcher = asyncio.create_task(_watch(request.receive))
        taking = asyncio.create_task(self.places.take())
        try:
            await asyncio.wait({watcher, taking}, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done() and not taking.done():
                raise ApiError(GONE_STATUS, "the connection was closed", "server_error")
            await taking
        except BaseException:
            watcher.cancel()
            if not taking.cancel() and not taking.cancelled() and taking.exception() is None:
                self.places.leave(None)
            raise
        watcher.add_done_callback(lambda task: None if task.cancelled() else gone())
        return watcher

    def _refresh(self) -> None:
        """Ask the parties what they hold. Raises `PeerLost` for one that is not there."""
        self.catalogue.refresh(self._patience())

    def _patience(self) -> Callable[[str], None]:
        """Return what ends the wait for a role that is not there."""
        patience = Patience(self.settings.party_seconds)
        return lambda reason: patience.progress(f"waiting for {reason}", 0, 0)

    async def _served(self, name: str, prefix: str | None = None) -> Served:
        """Return the model; parties are asked for one that is not known here alone, and now and then which prefixes there
        are, where one is wanted. Raises `ApiError` 404."""
        known = self.catalogue.known(name)
        if known is None:
            await asyncio.to_thread(self._refresh)
        elif prefix not in (None, OFF):
            with suppress(MpcacheError):  # what is known will do
                await asyncio.to_thread(self._refresh)
        return self.catalogue.find(name)

    # ---- answers -----------------------------------------------------------------------------------------------------
    async def _body(self, request: Request) -> bytes:
        """Read the request's body. A page of another origin cannot send JSON unless that is granted, which it never is."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise invalid("the body must be JSON: send 'Content-Type: application/json'", status=415)
        most = self.settings.max_body_bytes
        too_large = invalid(f"the body is larger than {most} bytes", code="request_too_large", status=413)
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for piece in request.stream():
                    data += piece
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            raise invalid(f"the body did not arrive within {self.settings.body_seconds:g} s", status=408) from None
        return bytes(data)

    async def _answer(
        self, request: Request, asked: Sequence[TextRequest], shape: Shape, parameters: Parameters
    ) -> Response:
        glance = self.live.open(shape.name, request.headers.get(CLIENT_ID, "")[:MOST_ID])
        generation = Generation(self.client, asked, self.places.leave, Watch(glance, self.settings.party_seconds))
        watcher = await self._take_place(request, generation.gone)
        generation.start()
        exchange = Exchange(generation, shape, watcher, self.metrics)
        headers = {"X-Request-Id": shape.name}
        if any(one.request.policy != self.settings.policy for one in asked):
            headers["X-Cache-Policy"] = requests.WHOLE
        if parameters.dropped:
            headers["X-Dropped-Parameters"] = ", ".join(dict.fromkeys(parameters.dropped))
        try:
            if parameters.stream:
                first = await exchange.first()
                return EventStream(exchange.stream(first), exchange.close, headers)
            return JSONResponse(await exchange.whole(), 200, headers)
        except BaseException:
            exchange.close()
            raise


async def _watch(receive: Receive) -> None:
    """Return when whoever asked closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _caught(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose errors are responses; the text of an unexpected one goes nowhere."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            return error.response()
        except MpcacheError as error:
            return from_error(error).response()
        except ClientDisconnect:
            return ApiError(GONE_STATUS, "the connection was closed", "server_error").response()
        except Exception as error:
            return from_error(public(error, "the gateway")).response()

    return call


async def _http_error(request: Request, error: HTTPException) -> Response:
    known = "/v1/models, /v1/completions, /v1/chat/completions, /v1/responses, /v1/embeddings, /metrics, /health, /ready"
    what = {404: f"unknown path; there are {known}", 405: "this path does not take this method"}
    message = what.get(error.status_code, error.detail)
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()
