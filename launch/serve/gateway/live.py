"""What the page shows of generations: how far each is, and what it costs, meanwhile and in the end. Numbers alone, which the
parties know."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

from mpc.ledger import Cost
from parties.client.client import GenerationResult

MOST_KEPT = 64  # requests
SPENT = ("rounds", "bytes_sent", "bytes_received", "offline_bytes")


class Glance:
    """The generations of one request, the newest of them; a thread of its own writes, the event loop reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, Any] = {"state": "waiting"}
        self._began = 0.0

    def begin(self, prompt: int, most: int) -> None:
        """Note a generation. prompt: tokens of its prompt; most: the most tokens of its answer."""
        with self._lock:
            self._began = time.perf_counter()
            self._now = {"state": "running", "prompt_tokens": prompt, "max_tokens": most, "progress": {}}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note how far it is: "prefill" in layers, "tokens" in tokens; whom it waits for otherwise."""
        with self._lock:
            if "progress" in self._now:
                self._now["progress"] = {**self._now["progress"], stage: [done, total]}

    def spent(self, name: str, cost: Cost) -> None:
        """Note what it has cost a party so far, or this client."""
        with self._lock:
            told = {key: value for key, value in asdict(cost).items() if key in SPENT}
            self._now["spent"] = {**self._now.get("spent", {}), name: told}

    def end(self, result: GenerationResult | None) -> None:
        """Note its end, None for a failure. The costs are the parties' ledgers."""
        with self._lock:
            self._now = {**self._now, "state": "failed" if result is None else "done", "seconds": self._seconds()}
            if result is not None:
                self._now |= {"session": result.session, "tokens": len(result.tokens), "costs": result.costs}

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def to_json(self) -> dict[str, Any]:
        """Return the newest generation."""
        with self._lock:
            now = dict(self._now)
            return {**now, "seconds": self._seconds()} if now["state"] == "running" else now


class Live:
    """The newest requests of a gateway, each by its id and by the one that whoever asks gave it. Only the event loop calls
    it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Glance]] = OrderedDict()

    def open(self, id: str, given: str) -> Glance:
        """Return the place for a new request's generations. id: the answer's. given: the client's own id, "" for none."""
        glance = Glance()
        self._kept[id] = given, glance
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return glance

    def to_json(self, id: str = "") -> dict[str, Any]:
        """Return the request with this id, of either kind; the newest one without. "idle" where there is none yet."""
        for name, (given, glance) in reversed(self._kept.items()):
            if id in ("", name, given):
                return {"id": name, **glance.to_json()}
        return {"state": "idle"}
