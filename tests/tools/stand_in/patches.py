"""Makes torch's own functions know the stand-in device: what says "cuda" makes its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mpc.device import int8, keystream, launches, products, triton_launch
from mpc.device.deferred import Deferred
from mpc.device.digits import DigitMatrix
from mpc.device.launches import Launch
from mpc.generators import CHACHA, GENERATORS
from tests.tools.stand_in import tensor
from tests.tools.stand_in.counts import note
from tests.tools.stand_in.tensor import CUDA, StandIn, up

FACTORIES = ("zeros", "ones", "full", "empty", "arange", "eye", "tensor", "as_tensor", "triu_indices", "linspace")
DIGIT_ROWS = "row product of digits"
_to = Tensor.to


def really_to(x: Tensor, device: str) -> Tensor:
    """Move a tensor to a device that is there."""
    return _to(x, device)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _to_device(self: Tensor, *args: Any, **options: Any) -> Tensor:
    """`Tensor.to`."""
    if isinstance(self, Deferred):
        return _to(self, *args, **options)
    device = options.get("device")
    for x in args:
        if isinstance(x, torch.device | str):
            device = x
        elif isinstance(x, StandIn):
            device, options = CUDA, {**options, "dtype": x.dtype}
    if not _is_cuda(device) or self.is_meta:
        return _to(self, *args, **options)
    rest = tuple(x for x in args if not isinstance(x, torch.device | str | StandIn))
    options = {name: value for name, value in options.items() if name not in ("device", "non_blocking")}
    out = _to(self, *rest, **options) if rest or options else self
    return out if isinstance(self, StandIn) else up(out)


_to_device.__name__ = "to"  # torch hands it on by its name


def _factory(name: str) -> Callable[..., Tensor]:
    original = getattr(torch, name)

    def make(*args: Any, **options: Any) -> Tensor:
        if name == "as_tensor" and args and isinstance(args[0], StandIn):
            dtype = options.get("dtype")
            return args[0] if dtype is None else _to(args[0], dtype)
        if not _is_cuda(options.get("device")):
            found: Tensor = original(*args, **options)
            return found
        del options["device"]
        if name in ("tensor", "as_tensor"):
            made = original(*args, **options)
            return made if isinstance(made, StandIn) else up(made)
        made = original(*args, **options, device=tensor.PLACE)
        note("kernel", name)
        return StandIn(made)

    return make


def _launched(launch: Launch) -> list[Tensor]:
    """Run a launch on what the device's tensors hold: one kernel, whose text must exist."""
    triton_launch.source_of(launch)
    note("kernel", "launch")
    if tensor.PLACE == "meta":
        return [StandIn(torch.empty(node.shape, dtype=node.dtype, device="meta")) for node in launch.outputs]
    kept = [(node, node.held) for node in launch.nodes if node.held is not None]
    for node, held in kept:
        node.held = held.held if isinstance(held, StandIn) else held
    devices = [node.device for node in launch.nodes]
    try:
        for node in launch.nodes:
            node.device = torch.device("cpu")
        return [StandIn(x) for x in launches.by_operations(launch)]
    finally:
        for node, device in zip(launch.nodes, devices, strict=True):
            node.device = device
        for node, held in kept:
            node.held = held


def _multiplied(a: Tensor, b: products.Matrix) -> Tensor:
    """Multiply few rows: one kernel, which reads the other matrix once."""
    if isinstance(b, DigitMatrix):
        note("kernel", DIGIT_ROWS, b.digits.numel())
        b = DigitMatrix(_held(b.digits), _held(b.memory), b.dtype)
    else:
        note("kernel", "row product", b.numel() * b.element_size())
        b = _held(b)
    return StandIn(products.by_torch(_held(a), b))


def _held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, StandIn) else x


def _made(head: Tensor, first: int, count: int) -> Tensor:
    """Make blocks of ChaCha20's stream: one kernel."""
    note("kernel", "keystream")
    if tensor.PLACE == "meta":
        return StandIn(torch.empty(64 * count, dtype=torch.uint8, device="meta"))
    held = head.held if isinstance(head, StandIn) else head
    key, nonce = held[:8].numpy().tobytes(), held[8:].numpy().tobytes()
    cipher = GENERATORS[CHACHA].cipher(key, int.from_bytes(nonce, "little"), first)
    return StandIn(torch.frombuffer(bytearray(cipher.update(bytes(64 * count))), dtype=torch.uint8))


def _shape_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Return what `torch._int_mm` gives: what torch itself has for shapes takes seconds to import."""
    return torch.empty((a.shape[0], b.shape[1]), dtype=torch.int32, device=a.device)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Let the device hold no data within: what comes to the host is zero, so no result is right, but memory of any size can
    be counted (`tests.tools.stand_in.memory`)."""
    with (
        mock.patch.object(tensor, "PLACE", "meta"),
        mock.patch.object(int8, "exact", return_value=True),
        mock.patch.object(torch, "_int_mm", _shape_of_product),
    ):
        yield


@contextmanager
def installed() -> Iterator[None]:
    """Let "cuda" be the stand-in device within, in all threads."""
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tensor, "to", _to_device))
        stack.enter_context(mock.patch.object(Tensor, "cuda", lambda self, *_, **__: _to_device(self, CUDA)))
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _factory(name)))
        launches.backends.append(_launched)
        products.row_kernels.append(_multiplied)
        keystream.kernels.append(_made)
        try:
            yield
        finally:
            launches.backends.remove(_launched)
            products.row_kernels.remove(_multiplied)
            keystream.kernels.remove(_made)
