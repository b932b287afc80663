"""From what is written down to launches: which elements get memory, which are computed with those that need them.

All that somebody still holds is computed at once (`deferred.settle`), so nothing is written down for long. Elements that
others need get memory before these are computed where computing them twice would cost more (`_cuts`). What then depends on
nothing else is one launch: one kernel that writes all of it, each output by blocks of its own.

All this follows from the operations and from what each is made of, hardly from sizes. So it is decided once for a stretch of
a program and kept (`Form`) under what it follows from (`_signature`): a second token, behind a longer cache, runs the
launches of the first.

A backend runs a launch: `by_operations`, one operation of torch after the other, or `triton_launch`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpc.device import reference, upload
from mpc.device.node import FIXED, Node

HEAVY = 24  # operations that are not done twice
HEAVIEST = 160  # operations of an output
MOST = 320  # operations of a launch
_MANY = 64  # sums whose sum is a step of its own
_FEW = 8  # so many times more elements than there are to compute: they are computed before
MOST_KEPT = 1 << 12  # stretches, of some 30 kB; layers of a model share theirs


@dataclass(eq=False)
class Form:
    """A launch of a stretch, whatever its sizes: of which of the stretch's nodes, by their places among them, see `Launch`.
    source: what a backend has made of it."""

    outputs: tuple[int, ...]
    nodes: tuple[int, ...]
    source: Any = None


@dataclass
class Launch:
    """outputs: nodes that get memory. nodes: all that is computed for them, arguments first; "held" ones are read."""

    outputs: list[Node]
    nodes: list[Node] = field(default_factory=list)
    form: Form | None = None


Backend = Callable[[Launch], list[Tensor]]


def by_operations(launch: Launch) -> list[Tensor]:
    """Run a launch by torch, one operation after the other."""
    found: dict[int, Tensor] = {}
    for node in launch.nodes:
        if node.held is not None:
            found[id(node)] = node.held
        else:
            found[id(node)] = reference.computed(node, [found[id(a)] for a in node.args], node.device)
    return [found[id(node)].contiguous() for node in launch.outputs]


backends: list[Backend] = [by_operations]
"""What runs launches; the last one counts."""
_lock = threading.RLock()
_forms: dict[tuple[object, ...], list[Form]] = {}


def compute(wanted: Sequence[Node]) -> None:
    """Give these nodes their elements."""
    with _lock, torch.inference_mode(False):  # what is made here may be used in either mode
        _compute([node for node in wanted if node.held is None])


def _compute(wanted: list[Node]) -> None:
    order = _ordered(wanted)
    for node in order:
        if node.held is None and 0 in node.shape:  # nothing to launch
            node.settled(torch.empty(node.shape, dtype=node.dtype, device=node.device))
    upload.bring(order)
    signature = _signature(order, wanted)
    forms = _forms.get(signature)
    if forms is None:
        if len(_forms) >= MOST_KEPT:
            _forms.clear()
        forms = _forms[signature] = _decided(order, wanted)
    for form in forms:
        launch = Launch([order[i] for i in form.outputs], [order[i] for i in form.nodes], form)
        for node, held in zip(launch.outputs, backends[-1](launch), strict=True):
            node.settled(held)
    for node in wanted:
        if node.held is None:
            node.settled(_shown(node))


def _signature(order: Sequence[Node], wanted: Sequence[Node]) -> tuple[object, ...]:
    """Return all that `_decided` and a kernel's text (`triton_source`) depend on, of nodes whose arguments come first."""
    at = {id(node): i for i, node in enumerate(order)}
    parts: list[tuple[object, ...]] = []
    for node in order:
        ones = tuple([size == 1 for size in node.shape])
        if node.held is not None:
            parts.append((node.dtype, ones, node.held.is_contiguous()))
            continue
        op, args = node.op, [at[id(a)] for a in node.args]
        parts.append((op, node.dtype, ones, node.attrs if op in FIXED else (), _many(node), *args))
    return (tuple(parts), tuple([at[id(node)] for node in wanted]))


def _many(node: Node) -> bool:
    """Return what sizes decide."""
    if node.op == "expand":
        return node.count > _FEW * node.args[0].count
    return node.op == "sum" and node.args[0].op == "sum" and node.args[0].count > _MANY


def _decided(order: list[Node], wanted: Sequence[Node]) -> list[Form]:
    """Return the launches, one after the other."""
    places = {id(node): i for i, node in enumerate(order)}
    bases = [_base(node) for node in wanted]  # what only moves elements shows those of another node
    cuts = _cuts(order)
    outputs_at = cuts | {id(node) for node in bases if node.held is None}
    level: dict[int, int] = {}
    steps: list[list[Node]] = []
    for node in order:
        at = max((level[id(a)] + (id(a) in cuts) for a in node.args), default=0)
        level[id(node)] = at
        if id(node) in outputs_at:
            while len(steps) <= at:
                steps.append([])
            steps[at].append(node)
    forms: list[Form] = []
    before: set[int] = set()
    for outputs in steps:
        for launch in _split(outputs, before):
            forms.append(Form(*(tuple([places[id(node)] for node in nodes]) for nodes in (launch.outputs, launch.nodes))))
        before |= {id(node) for node in outputs}
    return forms


def _is_view(node: Node) -> bool:
    """Whether torch shows the elements of what the node is made of, without a copy."""
    return node.op in ("axes", "permute", "expand", "slice") or (node.op == "reshape" and _in_order(node.args[0]))


def _in_order(node: Node) -> bool:
    """Whether elements lie one behind the other."""
    if node.held is not None:
        return node.held.is_contiguous()
    return _in_order(node.args[0]) if node.op == "axes" else node.op not in ("permute", "expand", "slice")


def _base(node: Node) -> Node:
    while node.held is None and _is_view(node):
        node = node.args[0]
    return node


def _shown(node: Node) -> Tensor:
    return node.held if node.held is not None else reference.view(node, _shown(node.args[0]))


def _ordered(wanted: Sequence[Node], before: Collection[int] = ()) -> list[Node]:
    """Return all nodes that these need, arguments first. before: nodes that will have their elements, by identity."""
    out: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(wanted)]
    while stack:
        node, ready = stack.pop()
        if ready:
            out.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        if node.held is None and id(node) not in before:
            stack.extend((a, False) for a in reversed(node.args) if id(a) not in seen)
    return out


def _cuts(order: list[Node]) -> set[int]:
    """Return the nodes that get memory before what needs them is computed; all others are computed where they are needed."""
    cuts: set[int] = set()
    weight: dict[int, int] = {}
    users: dict[int, int] = {}
    for node in order:
        for a in node.args:
            users[id(a)] = users.get(id(a), 0) + 1
    for node in order:
        total = 1
        for a in node.args:
            if a.held is not None or id(a) in cuts:
                continue
            if _wanted_before(node, a, weight[id(a)], users[id(a)], total):
                cuts.add(id(_base(a)))
            else:
                total += weight[id(a)]
        weight[id(node)] = total
    return cuts


def _wanted_before(node: Node, a: Node, weight: int, users: int, beside: int) -> bool:
    """Whether an argument of a node is better computed before it."""
    if a.op == "constant" or _base(a).held is not None:
        return False
    if a.op == "fold" or (node.op == "sum" and _many(node)) or weight + beside > HEAVIEST or (users > 1 and weight > HEAVY):
        return True
    if node.op == "pack":
        return weight * _looks(node.attrs[0]) > HEAVIEST
    if node.op in ("gather", "take"):
        return weight > HEAVY
    return node.op == "expand" and _many(node) and weight > 2


def _looks(bits: int) -> int:
    """Return how many elements a byte of packed elements is made of."""
    rest = bits % 8
    return (bits >= 8) + (-(-8 // rest) + (8 % rest > 0) if rest else 0)


def _split(outputs: list[Node], before: Collection[int]) -> list[Launch]:
    """Return launches of these outputs, none of too many operations. before: as in `_ordered`."""
    out: list[Launch] = []
    for node in outputs:
        needed = _ordered([node], before)
        if out:
            have = {id(n) for n in out[-1].nodes}
            more = [n for n in needed if id(n) not in have]
            if len(have) + len(more) <= MOST:
                out[-1].outputs.append(node)
                out[-1].nodes.extend(more)
                continue
        out.append(Launch([node], needed))
    return out
