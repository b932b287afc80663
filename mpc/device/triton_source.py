"""The text of a Triton kernel that runs a launch: sizes, strides and places are arguments, so growing caches share it.

An output of n elements is written by ceil(n / BLOCK) programs of its own, a lane for each element. A lane goes from its
place in the output back to what it reads (`_Writer.element`): nodes that move elements change the place, all others compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mpc.device.launches import Launch
from mpc.device.node import COMPARISONS, FIXED, Node

BLOCK = 256
_TYPES = {
    torch.int64: "tl.int64", torch.int32: "tl.int32", torch.int16: "tl.int16", torch.int8: "tl.int8",
    torch.uint8: "tl.uint8", torch.bool: "tl.int1",
}  # fmt: skip
_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
Number = Callable[[list[Node]], int]
Place = tuple[str, ...]


@dataclass
class Source:
    """text: the kernel `run`. numbers: what its integer arguments are for the nodes of a launch. read: which nodes it reads.
    written: which it writes."""

    text: str
    numbers: list[Number]
    read: list[int]
    written: list[int]


def key(launch: Launch) -> tuple[object, ...]:
    """Return what the text depends on: everything but sizes, strides and places."""
    at = {id(node): i for i, node in enumerate(launch.nodes)}
    nodes = []
    for node in launch.nodes:
        fixed = node.attrs if node.op in FIXED else ()
        ones = tuple(size == 1 for size in node.shape)
        op = "held" if node.held is not None else node.op
        nodes.append((op, node.dtype, ones, fixed, () if op == "held" else tuple(at[id(a)] for a in node.args)))
    return (tuple(nodes), tuple(at[id(node)] for node in launch.outputs))


@dataclass
class _Writer:
    nodes: list[Node]
    at: dict[int, int]
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, Number] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)
    memo: dict[tuple[int, Place, str], str] = field(default_factory=dict)
    indent: int = 2
    count: int = 0

    def put(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def name(self, text: str) -> str:
        """Write a value down; return its name."""
        self.count += 1
        self.put(f"v{self.count} = {text}")
        return f"v{self.count}"

    def number(self, name: str, found: Number) -> str:
        self.numbers.setdefault(name, found)
        return name

    def size(self, node: Node, dim: int) -> str:
        at = self.at[id(node)]
        return "1" if node.shape[dim] == 1 else self.number(f"n{at}_{dim}", lambda nodes: nodes[at].shape[dim])

    def total(self, node: Node) -> str:
        at = self.at[id(node)]
        return self.number(f"n{at}", lambda nodes: nodes[at].count)

    # ---- places --------------------------------------------------------------------------------------------------
    def apart(self, flat: str, node: Node) -> Place:
        """Return the place in a node's shape of the element of this number."""
        dims = [d for d, size in enumerate(node.shape) if size != 1]
        out = ["0"] * len(node.shape)
        rest = flat
        for d in reversed(dims):
            if d == dims[0]:
                out[d] = rest
                break
            size = self.size(node, d)
            out[d] = self.name(f"{rest} % {size}")
            rest = self.name(f"{rest} // {size}")
        return tuple(out)

    def together(self, place: Place, node: Node) -> str:
        """Return the number of the element at a place."""
        total = ""
        for d, x in enumerate(place):
            if node.shape[d] == 1:
                continue
            total = x if not total else self.name(f"{total} * {self.size(node, d)} + {x}")
        return total or "0"

    # ---- elements ------------------------------------------------------------------------------------------------
    def element(self, node: Node, place: Place, mask: str) -> str:
        """Write what the element at a place is; return its name."""
        place = tuple("0" if size == 1 else x for size, x in zip(node.shape, place, strict=True))
        memo = (self.at[id(node)], place, mask)
        if memo not in self.memo:
            self.memo[memo] = self._element(node, place, mask)
        return self.memo[memo]

    def _element(self, node: Node, place: Place, mask: str) -> str:
        if node.held is not None:
            return self._loaded(node, place, mask)
        special = getattr(self, f"_{node.op}", None)
        if special is not None:
            found: str = special(node, place, mask)
            return found
        args = [self.element(a, self._below(a, place), mask) for a in node.args]
        return self.name(self._computed(node, args))

    @staticmethod
    def _below(node: Node, place: Place) -> Place:
        return place[len(place) - len(node.shape) :] if node.shape else ()

    def _computed(self, node: Node, args: list[str]) -> str:
        kind = _TYPES[node.dtype]
        if node.op in COMPARISONS:
            wide = torch.promote_types(node.args[0].dtype, node.args[1].dtype)
            a, b = (f"{x}.to({_TYPES[wide]})" for x in args)
            return f"{a} {_SIGNS[node.op]} {b}"
        if node.op == "cast":
            return f"({args[0]} != 0)" if node.dtype == torch.bool else f"{args[0]}.to({kind})"
        if node.op == "where":
            return f"tl.where({args[0]}, {args[1]}.to({kind}), {args[2]}.to({kind}))"
        if node.op == "neg":
            return f"(0 - {args[0]}).to({kind})"
        if node.op == "invert":
            return f"({args[0]} == 0)" if node.dtype == torch.bool else f"({args[0]} ^ -1).to({kind})"
        a, b = (f"{x}.to({kind})" for x in args)
        if node.op in ("min", "max"):
            return f"tl.where({a} {'<' if node.op == 'min' else '>'} {b}, {a}, {b})"
        return f"({a} {_SIGNS[node.op]} {b}).to({kind})"

    def _pointer(self, node: Node) -> tuple[str, int]:
        at = self.at[id(node)]
        if at not in self.read:
            self.read.append(at)
        return f"p{at}", at

    def _loaded(self, node: Node, place: Place, mask: str) -> str:
        pointer, at = self._pointer(node)
        terms = []
        for d, x in enumerate(place):
            if node.shape[d] != 1:
                terms.append(f"{x} * " + self.number(f"s{at}_{d}", _stride(at, d)))
        found = self.name(f"tl.load({pointer} + ({' + '.join(terms) or '0'}) + zero, mask={mask}, other=0)")
        return self.name(f"{found} != 0") if node.dtype == torch.bool else found

    def _constant(self, node: Node, place: Place, mask: str) -> str:
        value = node.attrs[0]
        if node.dtype == torch.bool:
            return self.name(f"zero == {0 if value else 1}")
        if not -(1 << 31) <= value < 1 << 31:  # a literal of more bits would be read without a sign
            high, low = value >> 32, value & 0xFFFFFFFF
            text = f"((zero + {high}) << 32) | ((zero + {low >> 16}) << 16) | (zero + {low & 0xFFFF})"
            return self.name(f"({text}).to({_TYPES[node.dtype]})")
        return self.name(f"(zero + ({value})).to({_TYPES[node.dtype]})")

    # ---- nodes that move elements --------------------------------------------------------------------------------
    def _axes(self, node: Node, place: Place, mask: str) -> str:
        return self.element(node.args[0], tuple("0" if d is None else place[d] for d in node.attrs), mask)

    def _permute(self, node: Node, place: Place, mask: str) -> str:
        out = [""] * len(place)
        for d, of in enumerate(node.attrs):
            out[of] = place[d]
        return self.element(node.args[0], tuple(out), mask)

    def _expand(self, node: Node, place: Place, mask: str) -> str:
        return self.element(node.args[0], self._below(node.args[0], place), mask)

    def _reshape(self, node: Node, place: Place, mask: str) -> str:
        return self.element(node.args[0], self.apart(self.together(place, node), node.args[0]), mask)

    def _slice(self, node: Node, place: Place, mask: str) -> str:
        at, out = self.at[id(node)], []
        for d, x in enumerate(place):
            if node.args[0].shape[d] == 1:
                out.append("0")
                continue
            start = self.number(f"a{at}_{d}", _attribute(at, 0, d))
            step = self.number(f"b{at}_{d}", _attribute(at, 1, d))
            out.append(start if x == "0" else self.name(f"{x} * {step} + {start}"))
        return self.element(node.args[0], tuple(out), mask)

    def _cat(self, node: Node, place: Place, mask: str) -> str:
        dim = node.attrs[0]
        found, start = "", "0"
        for a in node.args:
            # a part's place, wherever the whole one is: what lies outside is not loaded
            moved = self.name(f"zero + {place[dim]} - {start}")
            inside = self.name(f"{mask} & ({moved} >= 0) & ({moved} < {self.size(a, dim)})")
            value = self.element(a, tuple(moved if d == dim else x for d, x in enumerate(place)), inside)
            found = value if not found else self.name(f"tl.where({inside}, {value}, {found})")
            start = self.name(f"{start} + {self.size(a, dim)}")
        return found

    def _gather(self, node: Node, place: Place, mask: str) -> str:
        index = self.element(node.args[1], place, mask)
        return self.element(node.args[0], tuple(index if d == node.attrs[0] else x for d, x in enumerate(place)), mask)

    def _take(self, node: Node, place: Place, mask: str) -> str:
        index = self.element(node.args[1], place, mask)
        return self.element(node.args[0], self.apart(index, node.args[0]), mask)

    def _fold(self, node: Node, place: Place, mask: str) -> str:
        return self._sum(node, place, mask)

    def _sum(self, node: Node, place: Place, mask: str) -> str:
        dim, whole = node.attrs[0], node.args[0]
        self.count += 1
        total, at = f"t{self.count}", f"r{self.count}"
        self.put(f"{total} = zero.to({_TYPES[node.dtype]})")
        self.put(f"for {at} in range({self.size(whole, dim)}):")
        outside, self.memo = self.memo, dict(self.memo)
        self.indent += 1
        value = self.element(whole, tuple(at if d == dim else x for d, x in enumerate(place)), mask)
        self.put(f"{total} {'^' if node.op == 'fold' else '+'}= {value}")
        self.indent -= 1
        self.memo = outside
        return self.name(total)

    # ---- packed bits ---------------------------------------------------------------------------------------------
    def _byte(self, data: Node, at: str, mask: str) -> str:
        return self.name(f"{self.element(data, (at,), mask)}.to(tl.int64)")

    def _unpack(self, node: Node, place: Place, mask: str) -> str:
        (bits,), data, e = node.attrs, node.args[0], self.name(f"zero + {self.together(place, node)}")
        count, whole, rest = self.total(node) if node.count != 1 else "1", bits // 8, bits % 8
        parts, start = [], 0
        for width in (8, 4, 2, 1) if bits == 64 else (4, 2, 1):
            if not (whole & width) or (bits == 64 and width != 8):
                continue
            for b in range(width):
                byte = self._byte(data, self.name(f"{count} * {start} + {e} * {width} + {b}"), mask)
                parts.append(f"({byte} << {8 * (start + b)})")
            start += width
        if rest:
            bit = self.name(f"{e} * {rest}")
            at = self.name(f"{count} * {whole} + ({bit} >> 3)")
            low = self._byte(data, at, mask)
            if 8 % rest:
                inside = self.name(f"{mask} & ({at} + 1 < {self.size(data, 0)})")
                low = self.name(f"{low} | ({self._byte(data, self.name(f'{at} + 1'), inside)} << 8)")
            parts.append(f"((({low} >> ({bit} & 7)) & {(1 << rest) - 1}) << {8 * whole})")
        return self.name(" | ".join(parts))

    def _pack(self, node: Node, place: Place, mask: str) -> str:
        (bits,), x, j = node.attrs, node.args[0], self.name(f"zero + {place[0]}")
        count, whole, rest = self.size(x, 0), bits // 8, bits % 8
        element, shift, start = "0", "0", 0
        for width in (8,) if bits == 64 else (4, 2, 1):
            if not (whole & width):
                continue
            at = self.name(f"{j} - {count} * {start}")
            here = self.name(f"({at} >= 0) & ({at} < {count} * {width})")
            element = self.name(f"tl.where({here}, {at} // {width}, {element})")
            shift = self.name(f"tl.where({here}, ({at} % {width} + {start}) * 8, {shift})")
            start += width
        out = ""
        if whole:
            inside = self.name(f"{mask} & ({j} < {count} * {whole})")
            out = self.name(f"({self.element(x, (element,), inside)} >> {shift}) & 255")
        if rest:
            bit = self.name(f"({j} - {count} * {whole}) * 8")
            first = self.name(f"{bit} // {rest}")
            parts = []
            for t in range(-(-8 // rest) + (1 if 8 % rest else 0)):
                e = self.name(f"{first} + {t}")
                inside = self.name(f"{mask} & ({bit} >= 0) & ({e} < {count})")
                value = self.name(f"({self.element(x, (e,), inside)} >> {8 * whole}) & {(1 << rest) - 1}")
                moved = self.name(f"{e} * {rest} - {bit}")
                up = f"({value} << tl.where({moved} > 0, {moved}, 0)) >> tl.where({moved} < 0, 0 - {moved}, 0)"
                parts.append(self.name(f"tl.where({inside} & ({moved} < 8), {up}, 0)"))
            last = self.name(f"({' | '.join(parts)}) & 255")
            out = last if not out else self.name(f"tl.where({bit} >= 0, {last}, {out})")
        return self.name(f"{out}.to(tl.uint8)")


def held_of(node: Node) -> torch.Tensor:
    """Return the elements of a node that has them."""
    assert node.held is not None
    return node.held


def _stride(at: int, dim: int) -> Number:
    return lambda nodes: held_of(nodes[at]).stride(dim)


def _attribute(at: int, which: int, dim: int) -> Number:
    return lambda nodes: int(nodes[at].attrs[which][dim])


def source(launch: Launch) -> Source:
    """Return the kernel of a launch; its arguments: what it reads, what it writes, its numbers, and the last block of each
    output."""
    at = {id(node): i for i, node in enumerate(launch.nodes)}
    writer = _Writer(launch.nodes, at)
    written = [at[id(node)] for node in launch.outputs]
    first = "0"
    for i, node in enumerate(launch.outputs):
        writer.indent, writer.memo = 1, {}
        writer.put(f"if (program >= {first}) & (program < e{i}):")
        writer.indent = 2
        writer.put(f"i = ((program - {first}) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)")
        writer.put(f"mask = i < {writer.total(node)}")
        writer.put("zero = i * 0")
        value = writer.element(node, writer.apart("i", node), "mask")
        kept = "tl.int8" if node.dtype == torch.bool else _TYPES[node.dtype]
        writer.put(f"tl.store(o{written[i]} + i, {value}.to({kept}) + zero.to({kept}), mask=mask)")
        first = f"e{i}"
    arguments = [f"p{i}" for i in writer.read] + [f"o{i}" for i in written] + list(writer.numbers)
    arguments += [f"e{i}" for i in range(len(written))]
    head = [f"def run({', '.join(arguments)}, BLOCK: tl.constexpr):", "    program = tl.program_id(0)"]
    return Source("\n".join([*head, *writer.lines]) + "\n", list(writer.numbers.values()), writer.read, written)
