"""The tensors of a GGUF file under their Hugging Face names, values and order, one at a time.

Names come from the package gguf (`TensorNameMap`), so do the values of quantised blocks (`dequantize`). Three things
differ in layout: llama.cpp turns rotary pairs (i, i + C/2) into neighbours in LLaMA's query and key rows, GPT-2's
matrices lie [out, in], and a tied head is not stored at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.families.family import Family
from models.gguf.header import GgufHeader, GgufTensor
from mpc.errors import CheckpointError

CHUNK_ELEMENTS = 1 << 22
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """Where a tensor of the checkpoint comes from. name: Hugging Face's; heads: its rotary rows are put back by head, 0:
    they lie right; transposed: stored [out, in] where the checkpoint has [in, out]."""

    name: str
    stored: GgufTensor
    heads: int
    transposed: bool

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype in the checkpoint: as in the file for 16-bit numbers, float32 for all else."""
        return _HALVES.get(kind_name(self.stored), torch.float32)

    @property
    def size(self) -> int:
        """Return the bytes in the checkpoint."""
        return prod(self.stored.shape) * self.dtype.itemsize


def kind_name(tensor: GgufTensor) -> str:
    """Return the tensor type's name, Q4_K say."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(tensor.kind).name


def sources(header: GgufHeader, family: Family) -> list[Source]:
    """Return a source for each tensor that the checkpoint of the family needs, in order.

    Raises `CheckpointError` naming the tensor that is missing, has another shape, or is of a type that cannot be read.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = header.text("general.architecture")
    number = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(number, family.architecture.layers)
    found = []
    for short, shape in family.tensors().items():
        name = short if short == "lm_head.weight" else family.prefix + short
        base, _, suffix = name.rpartition(".")
        known = names.get_name(base)
        stored = header.tensors.get(f"{known}.{suffix}")
        if stored is None:
            raise header.error(f"tensor '{known}.{suffix}' is missing; use a complete file")
        transposed = kind == "gpt2" and ".h." in name and len(shape) == 2
        wanted = shape[::-1] if transposed else shape
        if stored.shape != wanted:
            raise header.error(
                f"tensor '{stored.name}' has sizes {list(stored.shape)}, its metadata describe {list(wanted)}"
            )
        check_kind(header, stored)
        found.append(Source(name, stored, _rotary_heads(kind or "", name, family), transposed))
    return found


def _rotary_heads(kind: str, name: str, family: Family) -> int:
    if kind == "llama" and ".q_proj." in name:
        return family.architecture.heads
    if kind == "llama" and ".k_proj." in name:
        return family.architecture.kv_heads
    return 0


def check_kind(header: GgufHeader, tensor: GgufTensor) -> None:
    """Raise `CheckpointError` for a type that the package gguf does not dequantise."""
    if not _readable(tensor.kind):
        raise header.error(f"tensor '{tensor.name}' is of type {kind_name(tensor)}, which the package gguf does not read")


@cache
def _readable(kind: int) -> bool:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    known = GGMLQuantizationType(kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), dtype=np.uint8), known)
    except NotImplementedError:
        return False
    return True


def load(header: GgufHeader, source: Source) -> Tensor:
    """Return one tensor of the checkpoint, in its dtype and layout. Raises `CheckpointError` for one that holds no
    numbers."""
    stored = source.stored
    if source.dtype == torch.float32:
        values = torch.from_numpy(read_array(header, stored))
    else:
        raw = np.fromfile(header.path, dtype=np.int16, count=stored.size // 2, offset=stored.start)
        values = torch.from_numpy(raw).view(source.dtype).reshape(stored.shape)
    if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
        raise header.error(f"tensor '{stored.name}' holds infinities or NaN; use an intact file")
    if source.heads:
        pairs = values.reshape(source.heads, -1, 2, *stored.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(stored.shape)
    return (values.T if source.transposed else values).contiguous()


def read_array(header: GgufHeader, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """Return a tensor's values as float32, dequantised some rows at a time. Raises `CheckpointError`."""
    from gguf import GGMLQuantizationType, dequantize

    check_kind(header, tensor)
    width = tensor.shape[-1]
    rows = prod(tensor.shape) // width
    out = np.empty((rows, width), dtype=np.float32)
    for first, raw in _pieces(header, tensor, rows, max(1, CHUNK_ELEMENTS // width)):
        with np.errstate(all="ignore"):  # what is not finite is reported by name
            out[first : first + len(raw)] = dequantize(raw, GGMLQuantizationType(tensor.kind))
    return out.reshape(tensor.shape)


def _pieces(header: GgufHeader, tensor: GgufTensor, rows: int, most: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (first row, the bytes of up to `most` rows)."""
    size = tensor.size // rows
    try:
        with header.path.open("rb") as file:
            file.seek(tensor.start)
            for first in range(0, rows, most):
                count = min(most, rows - first)
                raw = np.fromfile(file, dtype=np.uint8, count=count * size)
                if raw.size != count * size:
                    raise header.error("became shorter while it was read; download it again")
                yield first, raw.reshape(count, size)
    except OSError as error:
        raise CheckpointError(f"{header.path}: cannot be read ({error.strerror})") from None
