"""What the page shows of the newest generation: how far it is, and what it costs, meanwhile and in the end. Numbers alone,
which the parties know."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Any

from mpc.ledger import Cost
from parties.client.client import GenerationResult

SPENT = ("rounds", "bytes_sent", "bytes_received", "offline_bytes")


class Live:
    """The newest generation of a gateway; threads of generations write, the event loop reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, Any] = {"state": "idle"}
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
