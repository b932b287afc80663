"""Tensors of a device whose elements are computed when they are needed, many operations in one kernel.

`Deferred` is a tensor of integers on a device. What is asked of it is written down (`recorded`) and run by `settle`: all
that is still held somewhere is computed then, in one or two launches. Whatever is not written down (a product of matrices, a
copy to the host, floating point, a write into memory) settles first and is torch's own operation on tensors that are there.

So gates are written as for the CPU, element by element, and a device runs a few kernels between two messages. Nothing
depends on a value: what is computed when follows from the program alone.

A write into memory settles first, so what was written down before reads what was there then. Memory that is written into
without going through one of these tensors must not be read by what is written down: of caches, rows are written once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mpc.device import launches, node, reference, triton_launch
from mpc.device.node import Node

METADATA = frozenset(
    ["__get__", "dim", "ndimension", "numel", "size", "element_size", "is_floating_point", "is_complex", "__len__"]
)
_IN_PLACE = ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift", "floordiv", "mod")
WRITES = frozenset(["__setitem__", *(f"__i{op}__" for op in _IN_PLACE)])
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


launches.backends.append(triton_launch.chosen)


class Unwritten(Exception):
    """Raised by what writes operations down, for one that it cannot."""


class _Waiting(threading.local):
    def __init__(self) -> None:
        self.found: list[weakref.ref[Deferred]] = []


_waiting = _Waiting()
recorders: dict[str, Callable[..., Any]] = {}
"""Name of a function of torch -> what writes it down; filled by `recorded`."""


class Deferred(Tensor):
    """A tensor on a device whose elements may not be there yet."""

    node: Node

    @staticmethod
    def __new__(cls, found: Node) -> Deferred:
        out: Deferred = Tensor._make_wrapper_subclass(cls, found.shape, dtype=found.dtype, device=found.device)
        out.node = found
        keep(out)
        return out

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return torch.Size(self.node.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.node.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.node.device

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """Return the tensor: no gradients are written down."""
        return self

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Deferred({tuple(self.node.shape)}, {self.node.dtype}, {self.node.op})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write an operation down, or settle and run it."""
        name = getattr(func, "__name__", "")
        if name in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        write = recorders.get(name)
        if write is not None:
            try:
                return write(*args, **(kwargs or {}))
            except Unwritten:
                pass
        return _run(func, name, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, func._schema.name.split("::")[1], args, kwargs or {})


def _run(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run torch's operation on tensors that are there; a write returns what was written into."""
    if name == "cpu" and isinstance(args[0], Deferred) and args[0].node.host is not None:
        return reference.at_host(args[0].node.host)
    writes = name in WRITES or (name.endswith("_") and not name.endswith("__"))
    if writes and isinstance(args[0], Deferred) and args[0].node.host is not None:
        raise RuntimeError(f"{name} on {args[0]}, which the host knows too: write into a copy")
    settle()
    found = func(*_each(args), **_each(kwargs))
    if writes:
        if isinstance(args[0], Deferred) and found is not None:
            return args[0]
        return found
    return deferred(found) if isinstance(found, Tensor) else tree_map(deferred, found)


def _each(x: Any) -> Any:
    """Return arguments with tensors that are there (`there`); `tree_map` takes several times as long for so few."""
    if isinstance(x, Tensor):
        return there(x)
    if type(x) in (tuple, list):
        return type(x)([_each(part) for part in x])
    if type(x) is dict:
        return {name: _each(part) for name, part in x.items()}
    return x


def there(x: Any) -> Any:
    """Return a tensor with its elements; anything else as it is."""
    if not isinstance(x, Deferred):
        return x
    if x.node.held is None:
        settle()
        launches.compute([x.node])
    return x.node.held


def deferred(x: Any) -> Any:
    """Return integers of a device as a tensor of this kind; anything else as it is."""
    if not isinstance(x, Tensor) or isinstance(x, Deferred) or x.device.type in ("cpu", "meta") or x.dtype not in INTEGERS:
        return x
    return Deferred(node.held(x))


def keep(x: Deferred) -> None:
    """Have a tensor's elements computed by the next `settle`, if it lives till then."""
    if x.node.held is None:
        _waiting.found.append(weakref.ref(x))


def known(x: Tensor, leaf: Callable[[], Tensor]) -> Tensor:
    """Return a tensor that the host can make by itself: whoever wants it there waits for nothing. leaf: makes it."""
    if isinstance(x, Deferred):
        x.node.host = node.Recipe(x.node, (), leaf)
    return x


def settle() -> None:
    """Compute all that this thread has written down and somebody still holds."""
    found, _waiting.found = _waiting.found, []
    nodes = {}
    for found_one in found:
        x = found_one()
        if x is not None and x.node.held is None:
            nodes[id(x.node)] = x.node
    if nodes:
        launches.compute(list(nodes.values()))


def of(x: Any, like: Node | None = None) -> Node:
    """Return the node of a tensor, or of a public number beside `like`. Raises `Unwritten`."""
    if isinstance(x, Deferred):
        return x.node
    if isinstance(x, bool | int):
        if like is None:
            raise Unwritten
        dtype = torch.int64 if like.dtype == torch.bool and not isinstance(x, bool) else like.dtype
        return node.constant(x, (), dtype, like.device)
    if isinstance(x, Tensor) and x.dtype in INTEGERS and x.device.type not in ("cpu", "meta"):
        return node.held(x)
    if isinstance(x, Tensor) and x.device.type == "cpu" and x.dim() == 0 and x.dtype in INTEGERS and like is not None:
        return node.constant(int(x), (), torch.promote_types(x.dtype, like.dtype), like.device)
    raise Unwritten


def operation(op: str, args: Sequence[Node], dtype: torch.dtype, shape: Sequence[int] | None = None) -> Deferred:
    """Return an operation, element by element unless a shape is given."""
    shape = node.broadcast(*(a.shape for a in args)) if shape is None else shape
    return Deferred(Node(op, tuple(args), shape, dtype, args[0].device))
