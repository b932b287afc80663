"""How a session loads a model's weights, and a prefix's rows: shares from the party's store, masked once with the load's
part of the tape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mpc.errors import ConfigurationError
from mpc.packing import packed_size
from parties.party.prefix_store import PrefixStore, StoredPrefix
from parties.party.store import ModelStore, StoredModel
from parties.program import SessionProgram
from parties.server.weight_cache import WeightLease
from parties.transport.session import Session
from parties.wire.shares import BITS
from protocols.suite import Suite


class WeightLoader:
    """Loads the weights of one session, for itself and for later ones. progress(stage, done, total) tells the client."""

    def __init__(
        self,
        session: Session,
        store: ModelStore,
        facts: StoredModel,
        program: SessionProgram,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._session = session
        self._store = store
        self._facts = facts
        self._program = program
        self._progress = progress

    def load(self, suite: Suite, load: str, lease: WeightLease) -> dict[str, Any]:
        """Load the weights and keep them under the load's id. Progress "model load" is in bytes of the shares.

        Raises `ConfigurationError` where the suite needs fewer fraction bits than the model was shared with, what the store
        raises, and the session's error.
        """
        facts = self._facts
        shapes = self._program.architecture.weight_shapes()
        sizes = {name: packed_size(math.prod(shape), BITS) for name, shape in shapes.items()}
        total, done = sum(sizes.values()), 0
        needed = suite.weight_fraction_bits
        more = needed - facts.fraction_bits
        if more < 0:
            raise ConfigurationError(
                f"suite '{suite.name}' needs weights with {needed} fraction bits, model {facts.name} was shared "
                f"with {facts.fraction_bits}: use more fraction bits, or share the model with fewer"
            )

        def share(name: str) -> Tensor:
            nonlocal done
            self._session.check()
            self._session.step = f"loading weight {name}"
            self._progress("model load", done, total)
            done += sizes[name]
            return (self._store.share(facts, name) << more).to(self._program.device)

        weights = self._program.load(suite, share)
        self._progress("model load", total, total)
        lease.put(load, weights)
        return weights


class RowsLoader:
    """Loads the rows of a registered prefix of one session, for itself and for later ones. Otherwise as `WeightLoader`."""

    def __init__(
        self,
        session: Session,
        store: PrefixStore,
        facts: StoredPrefix,
        program: SessionProgram,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._session = session
        self._store = store
        self._facts = facts
        self._program = program
        self._progress = progress

    def load(self, suite: Suite, load: str, lease: WeightLease) -> dict[str, Any]:
        """Load the rows and keep them under the load's id. Raises what the store raises, and the session's error."""
        total, done = len(self._facts.shapes()), 0

        def share(name: str) -> Tensor:
            nonlocal done
            self._session.check()
            self._session.step = f"loading rows {name}"
            self._progress("prefix load", done, total)
            done += 1
            return self._store.share(self._facts, name).to(self._program.device)

        rows = self._program.load_rows(suite, share)
        self._progress("prefix load", total, total)
        lease.put(load, rows)
        return rows
