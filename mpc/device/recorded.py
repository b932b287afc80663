"""What may be asked of a deferred tensor without running it: torch's functions by name, each written down as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc.device import deferred, node
from mpc.device.deferred import Deferred, Unwritten, of, operation, recorders
from mpc.device.node import COMPARISONS, Node
from mpc.packing import packed_size

MOST_SUMMED = 256  # elements that one lane adds up
LANES = 128  # that add up more
_SLOTS = {"__and__": "and", "__or__": "or", "__xor__": "xor", "__lshift__": "shl", "__rshift__": "shr"}
_BINARY = {
    **{name: name for name in ("add", "sub", "mul", *COMPARISONS)},
    "__add__": "add", "__sub__": "sub", "__mul__": "mul", "__lt__": "lt", "__le__": "le", "__gt__": "gt", "__ge__": "ge",
    "__eq__": "eq", "__ne__": "ne", **_SLOTS, "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
    "bitwise_left_shift": "shl", "bitwise_right_shift": "shr", "minimum": "min", "maximum": "max",
}  # fmt: skip


def _binary(op: str, x: Any, y: Any) -> Deferred:
    a = of(x) if isinstance(x, Tensor) else None
    b = of(y, a)
    if a is None:
        a = of(x, b)
    dtype = torch.bool if op in COMPARISONS else a.dtype if a.dtype == b.dtype else _promoted(a, b)
    if dtype == torch.bool and op in ("add", "sub", "mul", "shl", "shr", "min", "max"):
        raise Unwritten
    return operation(op, (a, b), dtype)


def _promoted(a: Node, b: Node) -> torch.dtype:
    if not a.shape and b.shape:
        return b.dtype if b.dtype != torch.bool else a.dtype
    if not b.shape and a.shape:
        return a.dtype if a.dtype != torch.bool else b.dtype
    return torch.promote_types(a.dtype, b.dtype)


def _writer(op: str, turned: bool = False) -> Callable[..., Any]:
    def write(x: Any, y: Any, **options: Any) -> Deferred:
        if options:
            raise Unwritten
        return _binary(op, y, x) if turned else _binary(op, x, y)

    return write


def _in_place(op: str) -> Callable[..., Any]:
    def write(x: Any, y: Any, **options: Any) -> Deferred:
        """The tensor shows what is new from now on; memory that others may show is written by torch."""
        if options or not isinstance(x, Deferred) or x.node.shared:
            raise Unwritten
        made = _binary(op, x, y)
        if made.node.shape != x.node.shape or made.node.dtype != x.node.dtype:
            raise Unwritten
        x.node = made.node
        deferred.keep(x)
        return x

    return write


def _cast(x: Any, *args: Any, **options: Any) -> Any:
    """`Tensor.to`."""
    found = of(x)
    dtype = options.pop("dtype", found.dtype)
    device = options.pop("device", found.device)
    options.pop("non_blocking", None)
    for a in args:
        if isinstance(a, torch.dtype):
            dtype = a
        elif isinstance(a, torch.device | str):
            device = torch.device(a)
        elif isinstance(a, Tensor):
            dtype, device = a.dtype, a.device
    device = torch.device(device)
    same = device == found.device or (device.type == found.device.type and device.index is None)
    if options or not same or dtype not in deferred.INTEGERS:
        raise Unwritten
    return x if dtype == found.dtype else operation("cast", (found,), dtype)


def _sizes(args: tuple[Any, ...]) -> list[int]:
    return list(args[0]) if len(args) == 1 and not isinstance(args[0], int) else list(args)


def _moves(move: Callable[[Node, Any], Node]) -> Callable[..., Any]:
    def write(x: Any, *args: Any, **options: Any) -> Deferred:
        if options or (args and isinstance(args[0], torch.dtype)):
            raise Unwritten
        return _shown(of(x), move(of(x), _sizes(args)))

    return write


def _shown(x: Node, out: Node) -> Deferred:
    """Return a tensor that shows the elements of another one: a write into either is one into both."""
    x.shared = out.shared = True
    return Deferred(out)


def _transposed(x: Node, dims: Sequence[int]) -> Node:
    order = list(range(len(x.shape)))
    a, b = dims if dims else (0, 1)
    order[a], order[b] = order[b], order[a]
    return node.permuted(x, order)


def _movedim(x: Any, source: Any, destination: Any) -> Deferred:
    found = of(x)
    if not isinstance(source, int):
        raise Unwritten
    rank = len(found.shape)
    order = [i for i in range(rank) if i != source % rank]
    order.insert(destination % rank, source % rank)
    return _shown(found, node.permuted(found, order))


def _unsqueezed(x: Node, dim: int) -> Node:
    at = dim % (len(x.shape) + 1)
    return node.reshaped(x, [*x.shape[:at], 1, *x.shape[at:]])


def _squeezed(x: Node, dims: Sequence[int]) -> Node:
    gone = {d % len(x.shape) for d in dims} if dims else set(range(len(x.shape)))
    return node.reshaped(x, [n for i, n in enumerate(x.shape) if not (i in gone and n == 1)])


def _flattened(x: Any, start_dim: int = 0, end_dim: int = -1) -> Deferred:
    found = of(x)
    shape = found.shape
    first, last = start_dim % max(1, len(shape)), end_dim % max(1, len(shape))
    return _shown(found, node.reshaped(found, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]]))


def _item(x: Any, index: Any) -> Deferred:
    """Numbers, slices, None and ... as an index; of tensors one alone, on the first axis of what it looks into."""
    found = of(x)
    parts = list(index) if isinstance(index, tuple) else [index]
    if len(parts) == 1 and isinstance(parts[0], Tensor) and parts[0].dtype == torch.int64:
        return _looked_up(found, of(parts[0]))
    if not all(p is None or p is Ellipsis or isinstance(p, slice) or type(p) is int for p in parts):
        raise Unwritten
    used = sum(p is not None and p is not Ellipsis for p in parts)
    whole = [slice(None)] * (len(found.shape) - used)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = [*parts[:at], *whole, *parts[at + 1 :]]
    else:
        parts = [*parts, *whole]
    starts: list[int] = []
    steps: list[int] = []
    sizes: list[int] = []
    shape: list[int] = []
    axis = 0
    for p in parts:
        if p is None:
            shape.append(1)
            continue
        size = found.shape[axis]
        axis += 1
        if isinstance(p, int):
            if not -size <= p < size:
                raise IndexError(f"index {p} is out of bounds for dimension {axis - 1} with size {size}")
            starts, steps, sizes = [*starts, p % size], [*steps, 1], [*sizes, 1]
            continue
        start, stop, step = p.indices(size)
        if step < 1:
            raise Unwritten
        many = max(0, -(-(stop - start) // step))
        starts, steps, sizes = [*starts, start], [*steps, step], [*sizes, many]
        shape.append(many)
    return _shown(found, node.reshaped(node.sliced(found, starts, steps, sizes), shape))


def _looked_up(table: Node, index: Node) -> Deferred:
    """Return rows of a table; indices are not negative."""
    if len(table.shape) == 1:
        return operation("take", (table, index), table.dtype, index.shape)
    width = math.prod(table.shape[1:])
    flat = node.reshaped(table, [table.count])
    rows = node.reshaped(index, [index.count, 1])
    steps = node.held(_steps(width, index.device))
    scaled = operation("mul", (rows, node.constant(width, (), torch.int64, index.device)), torch.int64)
    places = operation("add", (scaled.node, steps), torch.int64)
    found = operation("take", (flat, places.node), table.dtype, places.node.shape)
    return Deferred(node.reshaped(found.node, [*index.shape, *table.shape[1:]]))


def _steps(count: int, device: torch.device) -> Tensor:
    from mpc.device_packing import _steps as steps

    return steps(count, 1, device)[None]


def _joined(tensors: Sequence[Any], dim: int = 0, out: Tensor | None = None) -> Deferred:
    if out is not None:
        raise Unwritten
    found = [of(x) for x in tensors]
    dtype = found[0].dtype
    if any(x.dtype != dtype for x in found):
        raise Unwritten
    at = dim % len(found[0].shape)
    shape = list(found[0].shape)
    shape[at] = sum(x.shape[at] for x in found)
    parts = tuple(x for x in found if x.shape[at])
    if len(parts) == 1:
        return Deferred(node.reshaped(parts[0], shape))
    if not parts:
        raise Unwritten
    return Deferred(Node("cat", parts, shape, dtype, found[0].device, (at,)))


def _stacked(tensors: Sequence[Any], dim: int = 0, out: Tensor | None = None) -> Deferred:
    found = [of(x) for x in tensors]
    return _joined([Deferred(_unsqueezed(x, dim % (len(x.shape) + 1))) for x in found], dim % (len(found[0].shape) + 1), out)


def _where(condition: Any, *both: Any) -> Deferred:
    if len(both) != 2:
        raise Unwritten
    c = of(condition)
    like = next((of(x) for x in both if isinstance(x, Tensor)), None)
    if like is None:
        raise Unwritten
    a, b = (of(x, like) for x in both)
    return operation("where", (c, a, b), a.dtype if a.dtype == b.dtype else _promoted(a, b))


def _gathered(x: Any, dim: int, index: Any) -> Deferred:
    table, places = of(x), of(index)
    return Deferred(Node("gather", (table, places), places.shape, table.dtype, table.device, (dim % len(table.shape),)))


def _summed(x: Any, dim: Any = None, keepdim: bool = False, **options: Any) -> Deferred:
    found = of(x)
    if options or not found.shape:
        raise Unwritten
    rank = len(found.shape)
    dims = range(rank) if dim is None else [d % rank for d in ([dim] if isinstance(dim, int) else dim)]
    if found.dtype != torch.int64:
        found = operation("cast", (found,), torch.int64).node
    if math.prod(found.shape[d] for d in dims) > MOST_SUMMED:
        if len(dims) > 1 or found.shape[dims[0]] > LANES * MOST_SUMMED:
            raise Unwritten
        return _summed_by_lanes(found, dims[0], keepdim)
    for d in dims:
        shape = [1 if i == d else n for i, n in enumerate(found.shape)]
        found = found if found.shape[d] == 1 else Node("sum", (found,), shape, torch.int64, found.device, (d,))
    return Deferred(found if keepdim else _squeezed(found, list(dims)))


def _summed_by_lanes(x: Node, dim: int, keepdim: bool) -> Deferred:
    """Return the sum of many elements: of every `LANES`-th one first, then of these sums."""
    rank, size = len(x.shape), x.shape[dim]
    last = node.permuted(x, [*(d for d in range(rank) if d != dim), dim])
    front = last.shape[:-1]
    missing = -size % LANES
    if missing:
        zeros = node.constant(0, (*front, missing), x.dtype, x.device)
        last = Node("cat", (last, zeros), (*front, size + missing), x.dtype, x.device, (rank - 1,))
    rows = node.reshaped(last, [*front, (size + missing) // LANES, LANES])
    by_lane = Node("sum", (rows,), (*front, 1, LANES), x.dtype, x.device, (rank - 1,))
    total = node.reshaped(Node("sum", (by_lane,), (*front, 1, 1), x.dtype, x.device, (rank,)), front)
    return Deferred(_unsqueezed(total, dim) if keepdim else total)


def _filled(value: int | None) -> Callable[..., Any]:
    def write(x: Any, *args: Any, **options: Any) -> Deferred:
        found = of(x)
        dtype = options.pop("dtype", None) or found.dtype
        if options or dtype not in deferred.INTEGERS:
            raise Unwritten
        return Deferred(node.constant(args[0] if value is None else value, found.shape, dtype, found.device))

    return write


def _new(x: Any, *shape: Any, **options: Any) -> Deferred:
    found = of(x)
    if options:
        raise Unwritten
    return Deferred(node.constant(0, _sizes(shape), found.dtype, found.device))


def _unbound(x: Any, dim: int = 0) -> tuple[Any, ...]:
    found = of(x)
    at = dim % len(found.shape)
    return tuple(_item(x, (*[slice(None)] * at, i)) for i in range(found.shape[at]))


def _unary(op: str) -> Callable[..., Any]:
    return lambda x: operation(op, (of(x),), of(x).dtype)


def _cloned(x: Any, **options: Any) -> Any:
    if options or not isinstance(x, Deferred) or x.node.held is not None or x.node.shared:
        raise Unwritten
    return Deferred(x.node)


def _contiguous(x: Any) -> Any:
    if not isinstance(x, Deferred) or x.node.held is not None or x.node.op in ("permute", "expand", "slice"):
        raise Unwritten
    return x


def _clamped(x: Any, min: Any = None, max: Any = None) -> Any:
    for op, bound in (("max", min), ("min", max)):
        x = x if bound is None else _binary(op, x, bound)
    return x


def packed(x: Deferred, bits: int) -> Deferred:
    """Return elements of Z_2^bits in the layout of `mpc.packing`."""
    flat = node.reshaped(x.node, [x.node.count])
    size = packed_size(flat.count, bits)
    return Deferred(Node("pack", (flat,), (size,), torch.uint8, flat.device, (bits,)))


def unpacked(data: Tensor, bits: int, shape: Sequence[int]) -> Deferred:
    """Return the inverse of `packed`: bytes on a device, of the size that the shape says, as int64."""
    return Deferred(Node("unpack", (of(data),), shape, torch.int64, data.device, (bits,)))


for _name, _op in _BINARY.items():
    recorders[_name] = _writer(_op)
    if _name.startswith("__") and _op not in COMPARISONS:
        recorders[f"__r{_name[2:]}"] = _writer(_op, True)
        recorders[f"__i{_name[2:]}"] = _in_place(_op)
recorders.update(
    {
        "add_": _in_place("add"), "sub_": _in_place("sub"), "mul_": _in_place("mul"), "rsub": _writer("sub", True),
        "bitwise_and_": _in_place("and"), "neg": _unary("neg"), "__neg__": _unary("neg"), "__invert__": _unary("invert"),
        "bitwise_not": _unary("invert"), "to": _cast, "reshape": _moves(node.reshaped), "view": _moves(node.reshaped),
        "permute": _moves(node.permuted), "expand": _moves(node.expanded), "transpose": _moves(_transposed),
        "t": _moves(_transposed), "movedim": _movedim, "flatten": _flattened, "squeeze": _moves(_squeezed),
        "unsqueeze": lambda x, dim: _shown(of(x), _unsqueezed(of(x), dim)), "__getitem__": _item, "cat": _joined,
        "stack": _stacked, "where": _where, "gather": _gathered, "sum": _summed, "zeros_like": _filled(0),
        "ones_like": _filled(1), "new_zeros": _new, "full_like": _filled(None), "unbind": _unbound,
        "contiguous": _contiguous, "clone": _cloned, "clamp": _clamped,
        "take": lambda x, index: operation("take", (of(x), of(index)), of(x).dtype, of(index).shape),
    }
)  # fmt: skip
