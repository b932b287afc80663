"""One address before several gateways: fewest connections first, around those that do not answer, 503 without any."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launch.cluster.router import Router
from launch.local.ports import free_ports


@contextmanager
def gateway(name: str) -> Iterator[str]:
    """A server that answers each request with its name and what it got; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = name.encode() + b" " + self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def router() -> Iterator[Router]:
    found = Router(socket.create_server(("127.0.0.1", 0)))
    found.start()
    yield found
    found.stop()


def ask(router: Router, body: bytes = b"x") -> bytes:
    """Ask through the router, in a connection of its own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{router.port}/", data=body, timeout=10) as response:
        return bytes(response.read())


def test_that_the_least_busy_replica_gets_the_next_connection(router: Router) -> None:
    with gateway("one") as one, gateway("two") as two:
        router.add(one)
        router.add(two)
        held = socket.create_connection(("127.0.0.1", router.port))
        held.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        first = b""
        while not first.endswith(b" x"):
            first += held.recv(1 << 16)
        free = "two" if first.endswith(b"one x") else "one"
        for _ in range(3):
            assert ask(router).split()[0].decode() == free
        held.close()


def test_large_bodies_both_ways(router: Router) -> None:
    with gateway("one") as one:
        router.add(one)
        body = bytes(range(256)) * 4096
        assert ask(router, body) == b"one " + body


def test_that_a_replica_which_does_not_answer_is_gone_around(router: Router) -> None:
    with gateway("one") as one:
        router.add(f"127.0.0.1:{free_ports(1)[0]}")
        router.add(one)
        assert [ask(router) for _ in range(3)] == [b"one x"] * 3


def test_without_replicas(router: Router) -> None:
    with gateway("one") as one:
        router.add(one)
        router.remove(one)
        began = time.monotonic()
        with pytest.raises(urllib.error.HTTPError, match="503") as raised:
            ask(router)
        assert b"no replica serves now" in raised.value.read()
        assert time.monotonic() - began < 5
