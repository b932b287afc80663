"""What a dealer hands to the parties: at once from a host, many entries at a time from a device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mpc.messages import Message, at_host, joined, size

MOST = 600  # pieces of tapes, headers included, that stay on a device ...
MOST_BYTES = 1 << 22  # ... and their bytes


class Outbox:
    """emit: called with a party and its next bytes, in order."""

    def __init__(self, emit: Callable[[int, bytes], None]) -> None:
        self._emit = emit
        self._waiting: list[tuple[int, Message]] = []  # from the first one on that lies on the device
        self._bytes = 0

    def __call__(self, party: int, message: Message) -> None:
        """Hand a party its next bytes."""
        if not self._waiting and not isinstance(message, Tensor):
            self._emit(party, message if isinstance(message, bytes) else bytes(message))
            return
        self._waiting.append((party, message))
        self._bytes += size(message)
        if self._bytes > MOST_BYTES or len(self._waiting) > MOST:
            self.flush()

    def flush(self) -> None:
        """Hand over all that waits: one copy from the device."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        found = at_host(joined([message for _, message in waiting if isinstance(message, Tensor)])) if waiting else b""
        start = 0
        for party, message in waiting:
            if isinstance(message, Tensor):
                self._emit(party, found[start : start + size(message)])
                start += size(message)
            else:
                self._emit(party, bytes(message))
