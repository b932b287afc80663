"""Runs launches as Triton kernels, one each: text from `triton_source`, compiled once for each form of a launch.

Before a device's first launch a small one is run both ways. Where Triton is not installed, its compiler does not work, or
the results differ, the device computes operation by operation, and a log says so: slower, and the same numbers.
"""

from __future__ import annotations

import linecache
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mpc.device import triton_source
from mpc.device.launches import Launch, by_operations
from mpc.device.node import Node, constant, held
from mpc.device.triton_source import BLOCK, Source

_sources: dict[tuple[object, ...], Source] = {}
_compiled: dict[str, Any] = {}


def source_of(launch: Launch) -> Source:
    """Return the text for a launch, written once for all of its form."""
    if launch.form is not None and launch.form.source is not None:
        kept: Source = launch.form.source
        return kept
    key = triton_source.key(launch)
    found = _sources.get(key)
    if found is None:
        found = _sources[key] = triton_source.source(launch)
    if launch.form is not None:
        launch.form.source = found
    return found


def kernel(text: str) -> Any:
    """Return the kernel `run` of a text."""
    if text not in _compiled:
        import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
        import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

        file = f"<launch {len(_compiled)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # Triton reads a function's lines
        names: dict[str, Any] = {"tl": tl}
        exec(compile(text, file, "exec"), names)
        _compiled[text] = triton.jit(names["run"], do_not_specialize=_integers(text))
    return _compiled[text]


def _integers(text: str) -> list[str]:
    """Return the arguments that are numbers: a kernel is not compiled again for another size."""
    names = text[text.index("(") + 1 : text.index(")")].replace("\n", " ").split(", ")
    return [name for name in names if name[0] in "nsabe" and name[1:2].isdigit()]


def _plain(x: Tensor) -> Tensor:
    return x.view(torch.int8) if x.dtype == torch.bool else x


def chosen(launch: Launch) -> list[Tensor]:
    """Run a launch as a kernel where that works, else operation by operation."""
    device = launch.outputs[0].device
    return run(launch) if device.type == "cuda" and works(device) else by_operations(launch)


@cache
def works(device: torch.device) -> bool:
    """Whether kernels can be made for a device, and a small one is right."""
    x = held(torch.arange(-300, 300, device=device))
    low = Node("and", (x, constant(1023, (), x.dtype, device)), x.shape, x.dtype, device)
    launch = Launch([low], [x, low.args[1], low])
    try:
        right = all(torch.equal(a, b) for a, b in zip(run(launch), by_operations(launch), strict=True))
        why = "its results are wrong"
    except Exception as error:  # whatever a compiler that is not there, or does not work, raises
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        logging.getLogger(__name__).warning("no kernels on %s (%s): operations run one by one, slower", device, why)
    return right


def run(launch: Launch) -> list[Tensor]:
    """Run a launch on its device."""
    found = source_of(launch)
    read = [_plain(triton_source.held_of(launch.nodes[i])) for i in found.read]
    out = [
        torch.empty(launch.nodes[i].shape, dtype=launch.nodes[i].dtype, device=launch.nodes[i].device) for i in found.written
    ]
    ends, last = [], 0
    for node in launch.outputs:
        last += -(-node.count // BLOCK)
        ends.append(last)
    numbers = [number(launch.nodes) for number in found.numbers]
    with on(launch.outputs[0].device):
        kernel(found.text)[(last,)](*read, *[_plain(x) for x in out], *numbers, *ends, BLOCK=BLOCK)
    return out


def on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which Triton launches on a device: it takes the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
