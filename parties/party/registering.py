"""Registering a prefix at a compute party: its rows go to disk as they leave the program, and are seen once the model owner,
who alone has opened the range flags, says that they are to be kept.

Leaks: to parties and dealer the prefix's name, its length, its token ids where they are public, and whether the owner kept
it: of a text with a value outside its range that is one bit, as the end of any answer
(docs/security.md, "Registered prefixes").
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.errors import WireError
from parties.events import event
from parties.party.client_endpoint import ClientEndpoint
from parties.party.prefix_store import IncomingPrefix, PrefixStore, StoredPrefix
from parties.wire.draft import kept_rows


class Registering:
    """One registration at one party. text: the token ids where they are public. Raises `ConfigurationError` where it may not
    be stored, `EnvironmentProblem` when the disk refuses."""

    def __init__(self, store: PrefixStore, facts: StoredPrefix) -> None:
        self._store = store
        self._facts = facts
        self._incoming: IncomingPrefix | None = store.begin(facts)

    def public_prompt(self, device: str) -> Tensor | None:
        """Return this party's share of a public text, which party 0 holds whole; None where the text is secret."""
        if self._facts.text is None:
            return None
        ids = torch.tensor(self._facts.text, dtype=torch.int64)
        return (ids if self._facts.index == 0 else torch.zeros_like(ids)).to(device)

    def keep(self, name: str, share: Tensor) -> None:
        """Write this party's share of rows. Raises `EnvironmentProblem`."""
        assert self._incoming is not None
        self._incoming.rows(name, share)

    def finish(self, endpoint: ClientEndpoint, role: str) -> None:
        """Wait for the owner's word, and store the prefix. Raises `WireError`, and the session's end where it is not to be
        stored."""
        tokens, peer = self._facts.tokens, endpoint.stream.peer
        endpoint.session.step = "waiting for the model owner to keep the prefix"
        if (said := kept_rows(endpoint.stream.receive(), 0, tokens, peer)) != tokens:
            raise WireError(f"{peer} keeps {said} of {tokens} rows: all of them, or none by ending the session")
        assert self._incoming is not None
        self._store.complete(self._incoming)
        self._incoming = None
        facts = self._facts
        event("prefix_stored", role, owner=facts.owner, model=facts.model, prefix=facts.prefix, name=facts.name)

    def discard(self) -> None:
        """Remove what was written, unless it was stored."""
        if self._incoming is not None:
            self._store.discard(self._incoming)
            self._incoming = None
