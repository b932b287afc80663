"""A deployment in the lab whose roles can be killed and started again."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from launch.lab.lab import Lab
from launch.lab.removal import namespace
from parties.config.role_config import RoleConfig, load_config
from parties.identity.certificates import create_deployment
from parties.names import Role
from tests.parties.deployment import with_fingerprints
from tests.soak.role import as_role, serve

PARTIES = ["party0", "party1"]
DEALER, CLIENT, OWNER = "dealer", "client", "model-owner"
ROLES = [CLIENT, OWNER, DEALER, *PARTIES]
PORT = 7000
MODEL = "tiny"
START_SECONDS = 120.0
PAGED = {"max_in_step": 4, "max_cache_bytes": 1 << 16, "max_paged_bytes": 1 << 30}


def prepare() -> None:
    """Start the process that the roles' processes are forked from, with everything imported but nothing running: a
    restart then takes a moment. To be called outside the lab, which ends all that is inside."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.soak.role"])
    forkserver.ensure_running()


def save_model(folder: Path, layers: int = 1) -> Path:
    """A random GPT-2 of so many layers, 97 tokens and 48 positions, with large weights so that choices are clear."""
    width, generator = 24, torch.Generator().manual_seed(5)
    sizes = {"vocab_size": 97, "n_positions": 48, "n_embd": width, "n_layer": layers, "n_head": 3}
    inner = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    shapes = {"wte": (97, width), "wpe": (48, width)}
    shapes |= {f"h.{layer}.{name}": shape for layer in range(layers) for name, shape in inner.items()}
    tensors = {f"transformer.{name}.weight": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in list(shapes)[2:]:
        tensors[f"transformer.{name}.bias"] = torch.zeros(shapes[name][1])
    for name in [*(f"h.{layer}.{norm}" for layer in range(layers) for norm in ("ln_1", "ln_2")), "ln_f"]:
        tensors[f"transformer.{name}.weight"], tensors[f"transformer.{name}.bias"] = torch.ones(width), torch.zeros(width)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "eos_token_id": 0, **sizes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class SoakDeployment:
    """Configurations in `folder`; `start` and `kill` act on processes in `lab`. tapes: parties use tapes from disk. paged:
    caches lie in pages, and sessions run in step. limits: more of the parties'."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        sessions: int,
        tapes: bool,
        paged: bool = False,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.lab, self.folder, self.tapes, self.paged = lab, folder, tapes, paged
        self.running: dict[str, Any] = {}
        self._context = multiprocessing.get_context("forkserver")
        self.pids: list[int] = []
        kinds: dict[str, Role] = {CLIENT: "client", OWNER: "model-owner", DEALER: "dealer"}
        marks = create_deployment(folder / "certificates", {**kinds, **dict.fromkeys(PARTIES, "party")}, days=1)
        addresses = {name: f"{lab.addresses[name]}:{PORT}" for name in [DEALER, *PARTIES]}
        for name in ROLES:
            own = {**(PAGED if paged else {}), **(limits or {})} if name in PARTIES else {}
            values: dict[str, Any] = {
                "role": "party" if name in PARTIES else name,
                "name": name,
                "certificates": "certificates",
                "parties": [{"name": n, "address": addresses[n]} for n in PARTIES],
                "dealer": {"name": DEALER, "address": addresses[DEALER]},
                "clients": [CLIENT],
                "model_owners": [OWNER],
                "deadline_seconds": 20,
                "connect_seconds": 180,
                "limits": {"max_sessions": sessions, **own},
            }
            if name in addresses:
                values["listen"] = addresses[name]
            if name in PARTIES:
                values["store"] = f"store-{name}"
                if tapes:
                    values["tapes"] = f"tapes/{name}"
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(with_fingerprints(values, marks)), encoding="utf-8")

    def config(self, name: str) -> RoleConfig:
        """A role's configuration."""
        return load_config(self.folder / f"{name}.yaml")

    def start(self, name: str) -> None:
        """Start a server and wait until it serves."""
        near, far = self._context.Pipe()
        files = [self.folder / f"{name}.{kind}" for kind in ("yaml", "notes", "log")]
        process = self._context.Process(
            target=serve, args=(namespace(self.lab.name, name), *files, self.paged, far), daemon=True
        )
        process.start()
        far.close()
        with near:
            if not near.poll(START_SECONDS):
                raise RuntimeError(f"{name} did not start within {START_SECONDS:g} s")
            near.recv()
        self.running[name] = process
        self.pids.append(process.pid or 0)

    def start_all(self, names: list[str]) -> None:
        """Start servers side by side."""
        threads = [threading.Thread(target=self.start, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        missing = [name for name in names if name not in self.running]
        assert not missing, f"not started: {missing}"

    def kill(self, name: str) -> None:
        """End a server at once, as a crash would."""
        process = self.running.pop(name)
        process.kill()
        process.join()
        process.close()

    def stop(self) -> None:
        """End all servers."""
        for name in list(self.running):
            self.kill(name)

    def run(self, role: str, work: Callable[..., None], *arguments: object) -> None:
        """Run a function in a process of that role, to its end."""
        process = self._context.Process(target=as_role, args=(namespace(self.lab.name, role), work, *arguments), daemon=True)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{role} ended with exit code {process.exitcode}")

    def pages_left(self) -> list[str]:
        """Return the folders of sessions' pages that lie in the parties' stores."""
        return [path.name for name in PARTIES for path in (self.folder / f"store-{name}" / "pages").glob("session-*")]

    def pool(self, name: str) -> int:
        """Return how many threads of a server wait for calls, or serve one; 0 for who is none."""
        path = self.folder / f"{name}.pool"
        return int(path.read_text()) if name in self.running and path.exists() else 0

    def notes(self) -> dict[str, list[tuple[str, str]]]:
        """Of each party: kind and hash of every tape that a session got, restarts included; of each session with pages
        "pages", and how many times a layer was read back so far."""
        found = {}
        for name in PARTIES:
            path = self.folder / f"{name}.notes"
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            found[name] = [(line.split()[0], line.split()[1]) for line in lines]
        return found
