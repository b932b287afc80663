"""A deployment on 127.0.0.1 for tests: real gRPC with mutual TLS, all servers in one process unless asked otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.local.ports import free_ports
from parties.client.cancellation import Cancellation
from parties.client.client import Client, GenerationResult
from parties.client.drafting import Draft
from parties.client.model_reference import ModelReference
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.config.role_config import RoleConfig, make_config
from parties.dealer.dealer import DealerServer
from parties.identity.certificates import check, create_deployment, create_identity
from parties.identity.trust import Peer, peers_of
from parties.model_owner.model_owner import share_model
from parties.names import Role
from parties.party.compute_party import ComputePartyServer
from parties.program import MODEL, Program
from protocols.options import OptionValue
from protocols.registry import SuiteSpec
from tests import forked


def with_fingerprints(values: dict[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The values with `fingerprint` at every peer that says none."""

    def pinned(entry: Any) -> Any:
        entry = {"name": entry} if isinstance(entry, str) else entry
        return {"fingerprint": fingerprints[entry["name"]], **entry} if entry["name"] in fingerprints else entry

    lists: dict[str, Any] = {
        key: [pinned(one) for one in values[key]] for key in ("parties", "clients", "model_owners") if key in values
    }
    return {**values, **lists, **({"dealer": pinned(values["dealer"])} if values.get("dealer") else {})}


class AskingClient(Client):
    """A client with a short way to ask."""

    def ask(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        model: ModelReference | str | None = None,
        suite: str = "crypten",
        fraction_bits: int | None = None,
        options: Mapping[str, OptionValue] | None = None,
        policy: str = "full",
        stop_ids: Sequence[int] | None = None,
        draft: Draft | None = None,
        prompt_buckets: Sequence[int] = (),
        on_token: Callable[[int], bool | None] = lambda token: None,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        cancellation: Cancellation | None = None,
        **params: Any,
    ) -> GenerationResult:
        """Generate. stop_ids: tokens that end the answer, and no others; None: those of the model. params: further
        `SamplingParams`."""
        ends = {} if stop_ids is None else {"ignore_eos": True, "stop_token_ids": tuple(stop_ids)}
        spec = SuiteSpec(suite, fraction_bits, options)
        sampling = SamplingParams(max_tokens, **ends, **params)
        request = GenerationRequest(prompt_ids, sampling, spec, policy, model, draft, prompt_buckets=prompt_buckets)
        return self.generate(request, on_token=on_token, on_progress=on_progress, cancellation=cancellation)


class Deployment:
    """Configurations of all roles; `start()` runs dealer and parties in this process."""

    def __init__(self, folder: Path, parties: int = 2, program: Program = MODEL, **settings: Any) -> None:
        self.folder = folder
        self.names = [f"party{i}" for i in range(parties)]
        self.certificates = folder / "certificates"
        self.authority = self.certificates / "authority"
        members: dict[str, Role] = {**dict.fromkeys(self.names, "party"), "dealer": "dealer"}
        members |= {"client": "client", "owner": "model-owner", "stranger": "client"}
        self.fingerprints = create_deployment(self.certificates, members, days=1)
        ports = free_ports(parties + 1)
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.program = program
        self.prg: dict[str, str] = {}  # of parties that do not have the usual one
        self.settings = {"deadline_seconds": 5, "connect_seconds": 10, "step_seconds": 60, "resume_seconds": 1, **settings}
        self.processes: list[forked.Forked] = []
        self.servers: dict[str, ComputePartyServer | DealerServer] = {}

    def values(self, role: str, name: str) -> dict[str, Any]:
        """The configuration of a role as plain values, with the fingerprints of `fingerprints`."""
        values: dict[str, Any] = {
            "role": role,
            "name": name,
            "parties": [
                {"name": n, "address": a} | ({"prg": self.prg[n]} if n in self.prg else {})
                for n, a in zip(self.names, self.addresses, strict=False)
            ],
            "dealer": {"name": "dealer", "address": self.addresses[-1]},
            "clients": [{"name": "client", "decoding": ["greedy", "sample", "logits"]}],
            "model_owners": ["owner"],
            "certificates": self.certificates,
            **self.settings,
        }
        if role == "party":
            values["listen"] = self.addresses[self.names.index(name)]
            values["store"] = self.folder / f"store-{name}"
        if role == "dealer":
            values["listen"] = self.addresses[-1]
        return with_fingerprints(values, self.fingerprints)

    def config(self, role: str, name: str, **changes: Any) -> RoleConfig:
        """A checked configuration; fingerprints that are not given are those of `certificates`."""
        return make_config(with_fingerprints({**self.values(role, name), **changes}, self.fingerprints))

    def peer(self, name: str, address: str | None = None) -> Peer:
        """A server as its peers know it, at an address of its own or another."""
        known = peers_of(self.config("client", "client"))[name]
        return known if address is None else replace(known, address=address)

    def add(self, name: str, role: Role, days: float = 1) -> Path:
        """One more identity; its certificate."""
        made, _ = (file.replace(self.certificates / file.name) for file in create_identity(self.authority, name, role, days))
        self.fingerprints[name] = check(self.certificates, name).fingerprint
        return made

    def start_one(self, name: str, **changes: Any) -> ComputePartyServer | DealerServer:
        """Start one server."""
        server: ComputePartyServer | DealerServer
        if name == "dealer":
            server = DealerServer(self.config("dealer", name, **changes), self.program)
        else:
            server = ComputePartyServer(self.config("party", name, **changes), self.program)
        server.start()
        self.servers[name] = server
        return server

    def start(self) -> Deployment:
        """Start all servers."""
        for name in ["dealer", *self.names]:
            self.start_one(name)
        return self

    def start_process(self, name: str, rounds: int, pause: float = 0.0, **changes: Any) -> forked.Forked:
        """Start one server in a process of its own, with a toy of `rounds` rounds (0: the real program)."""
        values = with_fingerprints(
            {**self.values("dealer" if name == "dealer" else "party", name), **changes}, self.fingerprints
        )
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(values, default=str))
        command = [sys.executable, "-m", "tests.parties.role_process", str(path), str(rounds), str(pause)]
        process = forked.started(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def stop(self) -> None:
        """Stop all servers and end the processes started here."""
        for process in self.processes:
            process.kill()
            process.communicate()
        for server in self.servers.values():
            server.stop()

    def client(self, name: str = "client", keep_connections: bool = False, **changes: Any) -> Client:
        """A client; it asks for the suite `crypten` where a test names none."""
        return AskingClient(self.config("client", name, **changes), keep_connections)

    def share(self, checkpoint: Path, name: str = "tiny") -> ModelReference:
        """Share a checkpoint among the parties."""
        return share_model(self.config("model-owner", "owner"), checkpoint, name)

    def __enter__(self) -> Deployment:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
