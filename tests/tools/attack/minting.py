"""What an authority can do with its key: certificates of any name, and a relay that ends TLS at both sides with them."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

from parties.config.role_config import split_address
from parties.identity.certificates import Identity, check, create_identity
from parties.names import Role
from tests.parties.deployment import Deployment

OWNERS_KEY = "it has the authority's key and certificates of every name, but no key of a role"


def mint(deployment: Deployment, folder: Path, name: str, role: Role) -> Identity:
    """Certificate and key of `name` in `folder`, made by the authority for a key of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in create_identity(deployment.authority, name, role, 1):
        file.replace(folder / file.name)
    shutil.copy(deployment.authority / "authority.crt", folder)
    return check(folder, name)


class MintedRelay:
    """Ends TLS as `server` towards who dials, and dials `target` as `client`; what it reads it passes on.

    spared: how many connections it passes through as they are, at first. read: bytes that it has read in the clear.
    """

    def __init__(self, target: str, server: Identity, client: Identity, spared: int = 0) -> None:
        self.read = 0
        self.connections = 0
        self._spared = spared
        self._target = split_address(target)
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(server.certificate_file, server.key_file)
        self._near.load_verify_locations(server.authority_file)
        self._near.verify_mode = ssl.CERT_OPTIONAL
        self._far = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._far.check_hostname = False
        self._far.load_verify_locations(client.authority_file)
        self._far.load_cert_chain(client.certificate_file, client.key_file)
        for context in (self._near, self._far):
            context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(near, self.connections > self._spared), daemon=True).start()

    def _serve(self, near: socket.socket, opened: bool) -> None:
        with suppress(OSError), near, socket.create_connection(self._target, 5) as far:
            if opened:
                near = self._near.wrap_socket(near, server_side=True)
                far = self._far.wrap_socket(far, server_hostname="party0")
            back = threading.Thread(target=self._pump, args=(far, near, False), daemon=True)
            back.start()
            self._pump(near, far, opened)
            back.join(5)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(1 << 16):
                self.read += len(data) if counted else 0
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
