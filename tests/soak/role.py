"""One role's process: a server that notes which tapes it uses, or a piece of work.

A line for each tape that a session gets: "session" or "loading", and a hash of the tape's seed. It says nothing of the
256-bit seed, but shows when one comes again. A line for each session that ends with its cache in pages: "pages", and how
many times this process has read a layer back.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from launch.lab.lab import enter
from models.checkpoint import read_architecture
from mpc import role_process
from parties.config.role_config import load_config
from parties.dealer.dealer import DealerServer
from parties.model_owner.model_owner import share_model
from parties.pages import cache_memory, shelf
from parties.party import rendezvous
from parties.party.compute_party import ComputePartyServer
from parties.program import preload
from parties.tapes import agreement as tape_agreement
from parties.tapes.deal import DealOrder, DealSpec, deal

POOL_SECONDS = 0.5


def note_tapes(path: Path) -> None:
    """Write down every tape that a session of this process gets from now on."""
    original = tape_agreement.Dealt
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def noting(*arguments: Any, **named: Any) -> tape_agreement.Dealt:
        dealt = original(*arguments, **named)
        for kind, source in (("session", dealt.session), ("loading", dealt.loading)):
            if source is not None:
                name = hashlib.sha256(b"soak notes of tapes" + source.seed).hexdigest()
                os.write(handle, f"{kind} {name}\n".encode())
        return dealt

    for module in (rendezvous, tape_agreement):
        module.Dealt = noting  # type: ignore[attr-defined]


def note_pages(path: Path) -> None:
    """Write pages as small as these sessions' rows, and note what was read back."""
    original = cache_memory.CacheMemory.leave
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    shelf.PAGE_BYTES = 1 << 12

    def leave(self: cache_memory.CacheMemory, pager: cache_memory.SessionPager) -> None:
        original(self, pager)
        os.write(handle, f"pages {self.counts.read}\n".encode())

    cache_memory.CacheMemory.leave = leave  # type: ignore[method-assign]


def note_pool(path: Path) -> None:
    """Write down, again and again, how many threads serve calls: a pool grows to the most calls that ever came at once, and
    no further, so they are no leak."""
    while True:
        count = sum(thread.name.startswith("call") for thread in threading.enumerate())
        path.with_suffix(".new").write_text(str(count))
        path.with_suffix(".new").replace(path)
        time.sleep(POOL_SECONDS)


def serve(space: str, config: Path, notes: Path, log: Path, paged: bool, ready: Connection) -> None:
    """Serve in the namespace `space` until killed; the address goes to `ready`."""
    enter(space)
    torch.set_num_threads(1)
    role_process.set_up(computes=True)
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    note_tapes(notes)
    if paged:
        note_pages(notes)
    settings = load_config(config)
    server = DealerServer(settings) if settings.role == "dealer" else ComputePartyServer(settings)
    server.start()
    threading.Thread(target=note_pool, args=(notes.with_suffix(".pool"),), daemon=True).start()
    ready.send(server.address)
    ready.close()
    server.wait()


def as_role(space: str, work: Callable[..., None], *arguments: object) -> None:
    """Do it in the namespace `space`."""
    enter(space)
    torch.set_num_threads(1)
    work(*arguments)


def share(config: Path, checkpoint: Path, name: str) -> None:
    """The model owner's work."""
    share_model(load_config(config), checkpoint, name)


def deal_tapes(config: Path, checkpoint: Path, out: Path, prompts: list[int], new_tokens: int, sessions: int) -> None:
    """The offline dealer's work: so many tapes for each length of prompt."""
    deal(DealOrder(load_config(config), read_architecture(checkpoint), DealSpec(prompts, new_tokens, sessions)), out)


preload()
