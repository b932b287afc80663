"""What every role holds in memory, by stage, before anything runs: bytes resident in its process, at most in that stage.

Weights are counted as a party keeps them (32 or 64 bits a word, `Value.element_bytes`), the cache as its codecs do, and what
a step works on by a trace (`mpc.shape_tensor.live_bytes`): every share, mask, masked value and table that is referred to at
the same time. What the trace does not see, the numbers inside a gate, buffers of messages and what the allocator keeps, is
in factors and constants, measured with processes on one machine (`python -m tests.tools.estimate_check`, which compares).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

START = 302_000_000
"""Bytes of a role's process with Python, torch, gRPC and all suites, before anything is asked of it."""
CLIENT_START, CLIENT = 275_000_000, 315_000_000
SERVING = 340_000_000
"""Bytes of a server once its first session has made torch and gRPC bring in what they need."""
SHARE_COPIES = 3.7
"""Copies of the largest weight's share, 8 bytes an element, at the party that receives one over the wire."""
LOAD_COPIES = 2.8
"""Copies of a weight's share, 8 bytes an element, while it is opened masked; beside those that are kept."""
OWNER_COPIES = 2.5
"""Copies of the largest weight in 8 bytes an element at its owner, who folds it: beside the checkpoint's files."""
CALIBRATING = 30_000_000
"""Bytes that running a model in plaintext makes torch bring in."""
CALIBRATION_COPIES = 2.8
"""Copies in 8 bytes an element, of the largest weight and of a layer, while a model is calibrated: beside its files."""
BUFFERS = 10_000_000
"""Bytes of messages and tapes on their way."""


@dataclass(frozen=True)
class Factors:
    """Bytes for each byte that the trace of a step holds, of a suite. party, dealer: held by either, by part of the model
    ("" stands for the others): the digits and tables inside a softmax take more than those of an activation or of a
    ranking, which compares every token with every other one. left: that a prompt leaves with the allocator of a party, and
    of the dealer. kept: of either, for each byte of a weight at a party, while others are loaded: files of shares are in
    memory as far as they were read. server: bytes that the suite makes a server bring in."""

    party: Mapping[str, float]
    dealer: Mapping[str, float]
    left: tuple[float, float]
    kept: tuple[float, float] = (1.0, 0.5)
    server: int = 0


RANKING = "ranking"
"""The operation that counts as a part of the model, wherever it is asked for: of `Operations.top_k` and the like."""
MASKED = Factors(
    {"attention": 4.2, "cross": 4.2, "": 2.8}, {"attention": 2.9, "cross": 2.9, RANKING: 1.5, "": 1.8}, (0.8, 0.0)
)
CRYPTEN = Factors({"": 2.6}, {"": 1.0}, (0.3, 0.5), (1.5, 0.5), 65_000_000)
ROLES = ("client", "party", "dealer", "model owner")
STAGES = ("start", "share", "load", "prompt", "token")


@dataclass(frozen=True)
class Memory:
    """Bytes by role and stage. A party is the one that holds most. The owner's "start" is the calibration of a checkpoint
    that has no bounds yet."""

    stages: Mapping[str, Mapping[str, int]]

    def peak(self, role: str) -> int:
        """Return the most bytes of a role in any stage."""
        return max(self.stages[role].values())

    def here(self, parties: int) -> int:
        """Return the most bytes of all roles together, where one machine has all processes: the owner has left before a
        session begins."""
        servers = {s: parties * self.stages["party"][s] + self.stages["dealer"][s] for s in STAGES}
        owner = self.stages["model owner"].get("share", 0)
        return self.peak("client") + max(n + (owner if s == "share" else 0) for s, n in servers.items())

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return bytes by role and stage, with the peak."""
        return {role: {**stages, "peak": self.peak(role)} for role, stages in self.stages.items()}


@dataclass(frozen=True)
class Held:
    """What is counted of a session. weights: elements, and bytes of one at a party, in the order of loading. cached: bytes
    of the session's cache and of a prefix's rows, while the prompt is worked on and behind the last token. working: bytes
    of a step beyond that, by part of the model: of the prompt, of the largest further one. file: bytes of the checkpoint.
    layer: elements of its largest layer."""

    weights: Sequence[tuple[int, int]]
    cached: tuple[int, int]
    working: tuple[Mapping[str, int], Mapping[str, int]]
    file: int
    suite: str = "masked"
    layer: int = 0


def most_of(found: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the most of each part."""
    out: dict[str, int] = {}
    for one in found:
        out |= {part: max(count, out.get(part, 0)) for part, count in one.items()}
    return out


def _weighed(working: Mapping[str, int], factors: Mapping[str, float]) -> float:
    return max((count * factors.get(part, factors[""]) for part, count in working.items()), default=0.0)


def memory_of(held: Held) -> Memory:
    """Return what each role holds."""
    factors = MASKED if held.suite == "masked" else CRYPTEN
    serving = SERVING + factors.server
    largest = 8 * max(count for count, _ in held.weights)
    loaded = sum(count * each for count, each in held.weights)

    def steps(weights: float, cache: float, works: Mapping[str, float], left: float) -> dict[str, int]:
        prompt, token = (_weighed(working, works) for working in held.working)
        token = max(token, left * max(held.working[0].values(), default=0))
        each = {"prompt": (prompt, held.cached[0]), "token": (token, held.cached[1])}
        return {name: round(serving + BUFFERS + weights + cache * rows + work) for name, (work, rows) in each.items()}

    party = {
        "start": START,
        "share": round(START + SHARE_COPIES * largest),
        "load": round(serving + _loading(held.weights, factors.kept[0], LOAD_COPIES)),
        **steps(loaded, 1, factors.party, factors.left[0]),
    }
    dealer = {
        "start": START,
        "share": START,
        "load": round(serving + _loading(held.weights, factors.kept[1], LOAD_COPIES / 2)),
        **steps(loaded / 2, 0.5, factors.dealer, factors.left[1]),
    }
    owner = {
        "start": round(START + CALIBRATING + held.file + CALIBRATION_COPIES * (largest + 8 * held.layer)),
        "share": round(START + held.file + OWNER_COPIES * largest),
    }
    client = dict.fromkeys(STAGES, CLIENT) | dict.fromkeys(("start", "share"), CLIENT_START)
    return Memory({"client": client, "party": party, "dealer": dealer, "model owner": owner})


def _loading(weights: Sequence[tuple[int, int]], kept: float, copies: float) -> float:
    """Return the most bytes while weights are made ready one after the other."""
    most = before = 0.0
    for count, each in weights:
        before += kept * count * each
        most = max(most, before + copies * 8 * count)
    return most
