"""The head of a GGUF file: its metadata and its table of tensors, read within bounds.

A file comes from anybody, so every count and length is checked against a limit and against the file's size before anything
is made from it; the package gguf's own reader goes on past the end of a file for as long as a forged count says. What the
numbers mean (value types, tensor types, block sizes) is taken from that package.

Layout (little-endian; github.com/ggml-org/ggml, docs/gguf.md): magic, version, number of tensors and of values; each value
a key, a type and content; each tensor a name, its sizes with the fastest first, a type and an offset into the data, which
begins at the next multiple of the alignment.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from mpc.errors import CheckpointError

Scalar = bool | int | float | str
MetadataValue = Scalar | list[Scalar]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_HEAD = 128 << 20
MAX_VALUES = 4096
MAX_TENSORS = 1 << 16
MAX_NAME = 256
MAX_TEXT = 32 << 20
MAX_ITEMS = 1 << 20
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 36
MAX_ALIGNMENT = 1 << 16

_STRING, _ARRAY, _BOOL = 8, 9, 7
# value type -> struct code
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. kind: its type as GGUF numbers it; shape: as torch has it; start: from the file's first byte."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """A file's metadata and tensors by name; nothing of the tensors' content has been read."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, GgufTensor]

    def error(self, why: str) -> CheckpointError:
        """Return an error about the file."""
        return CheckpointError(f"{self.path}: {why}")

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a text. Raises `CheckpointError` when the value is of another type."""
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.error(f"'{key}' must be a text")
        return value

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number that is not negative. Raises `CheckpointError` when the value is something else."""
        value = self.metadata.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise self.error(f"'{key}' must be a whole number, one for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a number, in 32 bits as the shortest decimal that it is stored for. Raises `CheckpointError`."""
        value = self.metadata.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.error(f"'{key}' must be a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false. Raises `CheckpointError` when the value is something else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"'{key}' must be true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts, None where the key is missing. Raises `CheckpointError` when it holds something else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"'{key}' must be a list of texts")
        return [str(item) for item in value]

    def numbers(self, key: str) -> list[float] | None:
        """Return a list of numbers, None where the key is missing. Raises `CheckpointError` when it holds something else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(isinstance(item, bool | str) for item in value):
            raise self.error(f"'{key}' must be a list of numbers")
        return [item for item in value if isinstance(item, int | float)]


def is_gguf(path: Path) -> bool:
    """Whether this names a file (not a folder) that is called .gguf or begins as one."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Return the head of a GGUF file. Raises `CheckpointError` naming the file, and the key or tensor where one is wrong."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file, path.stat().st_size).header()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; name a .gguf file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


class _Reader:
    """Reads on from the file's first byte; `where` is named in errors."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._position = 0
        self._where = "its head"

    def _error(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {self._where} {why}")

    def _take(self, count: int) -> bytes:
        if self._position + count > min(self._size, MAX_HEAD):
            limit = "ends before it is complete; download the file again"
            raise self._error(limit if self._position + count > self._size else f"is longer than {MAX_HEAD >> 20} MiB")
        found = self._file.read(count)
        if len(found) != count:
            raise self._error("ends before it is complete; download the file again")
        self._position += count
        return found

    def _unpack(self, code: str, count: int = 1) -> tuple[int | float, ...]:
        form = f"<{count}{code}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _integer(self, code: str) -> int:
        return int(self._unpack(code)[0])

    def _count(self, what: str, most: int, code: str = "Q") -> int:
        found = self._integer(code)
        if found > most:
            raise self._error(f"states {found} {what}; at most {most} are read")
        return found

    def _text(self, most: int = MAX_TEXT) -> str:
        content = self._take(self._count("bytes of text", most))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self._error("holds text that is not UTF-8; use an intact file") from None

    def header(self) -> GgufHeader:
        """Read all of it."""
        if self._size < 24 or self._take(4) != MAGIC:
            raise CheckpointError(f"{self._path}: is not a GGUF file (it does not begin with GGUF); download it again")
        version = self._integer("I")
        if version not in VERSIONS:
            swapped = version and version & 0xFFFF == 0
            why = "big-endian" if swapped else f"of version {version}"
            raise CheckpointError(f"{self._path}: a GGUF file {why} is not read; supported: little-endian, versions 2 and 3")
        tensors, values = self._count("tensors", MAX_TENSORS), self._count("metadata values", MAX_VALUES)
        metadata: dict[str, MetadataValue] = {}
        for _ in range(values):
            self._where = "its metadata"
            key = self._text(MAX_NAME)
            self._where = f"'{key}'"
            if key in metadata:
                raise self._error("is there twice; use an intact file")
            metadata[key] = self._value(self._integer("I"))
        found = [self._tensor() for _ in range(tensors)]
        return GgufHeader(self._path, metadata, self._placed(found, metadata))

    def _value(self, kind: int) -> MetadataValue:
        if kind != _ARRAY:
            return self._items(kind, 1)[0]
        inner = self._integer("I")
        return self._items(inner, self._count("items", MAX_ITEMS))

    def _items(self, kind: int, count: int) -> list[Scalar]:
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind not in _CODES:
            raise self._error(f"is of type {kind}, which is not read")
        if kind == _BOOL:
            return [bool(item) for item in self._unpack("B", count)]
        if kind == 6:
            return [_shortest(float(item)) for item in self._unpack("f", count)]
        return list(self._unpack(_CODES[kind], count))

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Read a tensor's name, kind, shape and offset into the data."""
        self._where = "its table of tensors"
        name = self._text(MAX_NAME)
        self._where = f"tensor '{name}'"
        dimensions = self._count("dimensions", MAX_DIMENSIONS, "I")
        shape = tuple(int(size) for size in reversed(self._unpack("Q", dimensions)))
        if not shape or 0 in shape or prod(shape) > MAX_ELEMENTS:
            raise self._error(f"has sizes {list(shape)}; 1 to {MAX_ELEMENTS} elements are needed")
        return name, self._integer("I"), shape, self._integer("Q")

    def _placed(
        self, found: list[tuple[str, int, tuple[int, ...], int]], metadata: Mapping[str, MetadataValue]
    ) -> dict[str, GgufTensor]:
        """Return the tensors by name, each wholly inside the file."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise CheckpointError(f"{self._path}: 'general.alignment' = {alignment!r} must be a power of two up to 65536")
        data = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in found:
            self._where = f"tensor '{name}'"
            if name in tensors:
                raise self._error("is there twice; use an intact file")
            size = self._tensor_bytes(kind, shape)
            if offset % alignment or data + offset + size > self._size:
                raise self._error("lies outside the file; it is truncated: download it again")
            tensors[name] = GgufTensor(name, kind, shape, data + offset, size)
        return tensors

    def _tensor_bytes(self, kind: int, shape: tuple[int, ...]) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if kind not in {known.value for known in GGMLQuantizationType}:
            raise self._error(f"is of type {kind}, which the package gguf does not know; a newer one may")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise self._error(f"has rows of {shape[-1]} elements, but its type is stored in blocks of {block}")
        return prod(shape) // block * size


def _shortest(value: float) -> float:
    """Return the shortest decimal that a 32-bit number is stored for: 9.999999747378752e-06 was written as 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))
