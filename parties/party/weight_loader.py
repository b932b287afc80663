"""How a session loads a model's weights, and a prefix's rows: shares from the party's store, masked once with the load's
part of the tape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mpc.allocator import give_back
from mpc.errors import ConfigurationError
from mpc.packing import packed_size
from parties.party.prefix_store import PrefixStore, StoredPrefix
from parties.party.store import ModelStore, StoredModel
from parties.program import SessionProgram
from parties.server.weight_cache import WeightLease
from parties.transport.session import Session
from parties.wire.shares import BITS
from protocols.suite import Suite


@dataclass(frozen=True)
class WeightLoader:
    """Loads the weights of one session, for itself and for later ones. progress(stage, done, total) tells the client."""

    session: Session
    store: ModelStore
    facts: StoredModel
    program: SessionProgram
    progress: Callable[[str, int, int], None]

    def load(self, suite: Suite, load: str, lease: WeightLease) -> dict[str, Any]:
        """Load the weights and keep them under the load's id. Progress "model load" is in bytes of the shares.

        Raises `ConfigurationError` where the suite needs fewer fraction bits than the model was shared with, what the store
        raises, and the session's error.
        """
        facts = self.facts
        shapes = self.program.architecture.weight_shapes()
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
            self.session.check()
            self.session.step = f"loading weight {name}"
            self.progress("model load", done, total)
            done += sizes[name]
            own = self.store.share(facts, name)
            own <<= more  # in place: a weight is large
            return own.to(self.program.device)

        weights = self.program.load(suite, share)
        give_back()
        self.progress("model load", total, total)
        lease.put(load, weights)
        return weights


@dataclass(frozen=True)
class RowsLoader:
    """Loads the rows that one session begins behind, for itself and for later ones. facts: of the registered texts by number
    (`Manifest.blocks`). Otherwise as `WeightLoader`."""

    session: Session
    store: PrefixStore
    facts: Mapping[int, StoredPrefix]
    program: SessionProgram
    progress: Callable[[str, int, int], None]

    def load(self, suite: Suite, load: str, lease: WeightLease) -> dict[str, Any]:
        """Load the rows and keep them under the load's id. Raises what the store raises, and the session's error."""
        total, done = sum(len(one.shapes()) for one in self.facts.values()), 0

        def share(number: int, name: str) -> Tensor:
            nonlocal done
            self.session.check()
            self.session.step = f"loading rows {name}"
            self.progress("prefix load", done, total)
            done += 1
            return self.store.share(self.facts[number], name).to(self.program.device)

        rows = self.program.load_rows(suite, share)
        self.progress("prefix load", total, total)
        lease.put(load, rows)
        return rows
