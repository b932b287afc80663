"""The tensor of the stand-in device, and what CUDA would do with each operation on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mpc.device.deferred import Deferred
from tests.tools.stand_in import memory
from tests.tools.stand_in.counts import line, note

CUDA = torch.device("cuda:0")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _names(
    "view _unsafe_view expand permute transpose t select slice unsqueeze squeeze detach alias as_strided unbind split "
    "split_with_sizes narrow diagonal _reshape_alias lift_fresh unfold empty empty_like new_empty empty_strided "
    "new_empty_strided"
)
WAITS = _names("_local_scalar_dense nonzero equal is_nonzero _unique2 masked_select bincount unique_dim")
ASKED = _names("_local_scalar_dense equal is_nonzero")
SCALARS = _names("item tolist __bool__ __int__ __float__ __index__")
PRODUCTS = _names("mm bmm addmm baddbmm dot mv addmv addbmm vdot")
INDEXING = _names("index _unsafe_index index_put index_put_ _index_put_impl_")
UNCOMPARED = VIEWS | {"_to_copy", "empty_permuted"}
MIRROR: Any = None
"""What runs before and after each operation, see `mirror`."""
PLACE = "cpu"
"""Where the data lies; "meta": there are shapes alone, and what comes to the host is zero (`patches.shapes_alone`)."""
NOT_IN_THIS_BUILD = ("not linked with support", "arguments from the 'CUDA' backend")
"""torch's words where a function looks for the real device before it comes to `__torch_dispatch__`."""


class DeviceMistake(RuntimeError):
    """What CUDA refuses, with the line that asked for it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{line()}: {what}")


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _plain(x: Any) -> Any:
    return x.held if isinstance(x, StandIn) else x


def _values(x: Any) -> Any:
    return _content(x.held) if isinstance(x, StandIn) else x


def _placed(x: Any) -> Any:
    """Return a result as a tensor of the device."""
    return StandIn(x) if isinstance(x, Tensor) and not isinstance(x, StandIn) and x.device.type == PLACE else x


def up(x: Tensor) -> StandIn:
    """Return a copy of a host's tensor on the device."""
    note("up", "copy", _size(x))
    if PLACE == "meta":
        return StandIn(torch.empty_like(x.detach(), device=PLACE))
    return StandIn(x.detach().clone(memory_format=torch.preserve_format))


def down(x: Tensor) -> Tensor:
    """Return what the host gets of a result; it waits for it."""
    note("down", "copy", _size(x))
    note("wait", "copy")
    return _content(x)


def _content(x: Tensor) -> Tensor:
    """Return data, zeros where there are shapes alone."""
    return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x


class StandIn(Tensor):
    """A tensor that says cuda:0. held: its data, on the CPU. block: its memory, where that is watched."""

    held: Tensor
    block: memory.Block | None

    @staticmethod
    def __new__(cls, held: Tensor) -> StandIn:
        made: StandIn = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )
        made.held = held
        made.block = memory.block(held)
        return made

    def __repr__(self, **_: Any) -> str:
        return f"StandIn({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Functions of the host first; the rest goes on to `__torch_dispatch__` where torch lets it."""
        if Deferred in types or any(isinstance(x, Deferred) for x in args):
            return Deferred.__torch_function__(func, types, args, kwargs)
        if not all(issubclass(x, Tensor) for x in types):
            return NotImplemented  # tensors without content, which know what to do with others
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "cpu":
            return down(args[0].held.clone())
        if name in ("numpy", "__array__", "data_ptr"):
            raise DeviceMistake("can't convert cuda:0 device type tensor to numpy; copy it to the host first")
        if name in SCALARS:
            return func(down(args[0].held), *args[1:], **kwargs)
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        except RuntimeError as error:
            if not any(words in str(error) for words in NOT_IN_THIS_BUILD):
                raise
        if name in ("__getitem__", "__setitem__"):
            _note_index(name, *args)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        if name not in ("__getitem__", "__setitem__") and not _shows(found, args):
            note("kernel", name)
        return tree_map(_placed, found)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check, count and run one operation of torch on the data."""
        options = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        if name == "copy_":
            return _copied(func, args, options)
        _check(name, args, options)
        wanted = options.get("device")
        to_host = wanted is not None and torch.device(wanted).type == "cpu"
        if wanted is not None:
            options["device"] = torch.device(PLACE)
        mirror = None if MIRROR is None or name in UNCOMPARED else MIRROR
        made = mirror[0](func, args, options) if mirror else None
        plain = _values if name in ASKED else _plain
        found = func(*tree_map(plain, args), **tree_map(plain, options))
        if mirror:
            mirror[1](made, found)
        if name == "_to_copy" and to_host:
            return down(found)
        writes = func._schema.arguments and _written(func._schema.arguments[0])
        if name not in VIEWS and (writes or not _shows(found, args)):
            note("kernel", name)
        if name in WAITS:
            note("wait", name)
        if writes:
            return args[0]
        if to_host:
            return tree_map(lambda x: _content(x) if isinstance(x, Tensor) else x, found)
        return found if name in ASKED else tree_map(_placed, found)


def _written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _copied(func: Any, args: Any, options: Any) -> Any:
    """Copy into a tensor of either side."""
    target, source = args[0], args[1]
    plain = _plain if isinstance(target, StandIn) else _values
    func(*tree_map(plain, args), **options)
    if not isinstance(target, StandIn):
        down(target)
    elif not isinstance(source, StandIn) and source.dim() > 0:
        note("up", "copy_", _size(source))
    note("kernel", "copy_")
    return target


def _shows(found: Any, args: Any) -> bool:
    """Whether a result is the memory of an argument in another shape: no kernel."""
    if not isinstance(found, Tensor) or not isinstance(args[0], StandIn):
        return False
    same: bool = found.untyped_storage()._cdata == args[0].held.untyped_storage()._cdata
    return same


def _note_index(name: str, x: Any, index: Any, *value: Any) -> None:
    """Count what an index asks for: one that lies at the host is copied up, a mask is waited for."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [i for i in parts if isinstance(i, Tensor)]
    for i in tensors:
        if not isinstance(i, StandIn) and i.dim() > 0:
            note("up", "index", _size(i))
        if i.dtype == torch.bool:
            note("wait", "mask as index")
    if value and isinstance(value[0], Tensor) and not isinstance(value[0], StandIn) and value[0].dim() > 0:
        if not isinstance(x, StandIn):
            return
        note("up", "copy", _size(value[0]))
    if value and not isinstance(x, StandIn):
        down(x[index])
    if tensors or name == "__setitem__":
        note("kernel", name)


def _check(name: str, args: Any, options: Any) -> None:
    """Raise `DeviceMistake` for what CUDA refuses; count indices that it copies up by itself."""
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, (args, options))
    here = [x for x in found if isinstance(x, StandIn)]
    host = [x for x in found if not isinstance(x, StandIn) and x.dim() > 0 and not x.is_meta]
    if host and name in INDEXING and isinstance(args[0], StandIn):
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        for i in (i for i in host if any(i is j for j in indices)):
            note("up", "index", _size(i))
        host = [x for x in host if not any(x is j for j in indices)]
    if host:
        shapes = [tuple(x.shape) for x in host]
        raise DeviceMistake(f"expected all tensors to be on the same device, got cpu {shapes} beside cuda:0 in {name}")
    if any(x.is_meta for x in found):
        raise DeviceMistake(f"a tensor without content beside cuda:0 in {name}")
    if name in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
        note("wait", "mask as index")
    if name in PRODUCTS and not (here[0].is_floating_point() or here[0].is_complex()):
        raise DeviceMistake(f"'{name}' is not implemented on CUDA for {here[0].dtype}")
    if name == "_int_mm":
        (m, k), n = args[0].shape, args[1].shape[1]
        if m <= 16 or k % 8 or n % 8:
            raise DeviceMistake(f"'_int_mm' on CUDA takes more than 16 rows and multiples of 8, got [{m}, {k}] x [{k}, {n}]")
