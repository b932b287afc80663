"""Messages of ring elements: bytes at the host, or bytes on a device until a round sends them.

What is packed on a device stays there; a round joins all that it sends and takes it to the host at once, and takes to the
device at once what has arrived, with all else that goes up: one copy down, one up, one wait a round, whatever is opened.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpc.device import recorded, upload
from mpc.device.deferred import Deferred, deferred, known, settle, there
from mpc.device_packing import checked, unpack_there, unpack_words_there
from mpc.errors import WireError
from mpc.packing import pack, unpack, unpack_words, word_bytes

MOST_IN_ONE = 16  # messages that one kernel packs and joins
NARROWEST = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Message = bytes | bytearray | memoryview | Tensor
"""Bytes, or uint8 [bytes] on a device."""


def packed(x: Tensor, bits: int) -> Message:
    """Return elements of Z_2^bits, bit-packed where they lie."""
    return pack(x, bits) if x.device.type == "cpu" else recorded.packed(deferred(x), bits)


def unpacked(part: Message, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the inverse of `packed`: int64 of `shape`, canonical, where the bytes lie. Raises `WireError`."""
    if not isinstance(part, Tensor):
        return unpack(part, bits, shape)
    if part.device.type == "cpu":
        return unpack_there(part, bits, shape)
    checked(part, bits, shape)
    return recorded.unpacked(part, bits, shape)


def unpacked_words(part: Message, bits: int, shape: Sequence[int]) -> Tensor:
    """As `unpacked`, in the narrowest signed integers that hold `bits`: congruent modulo 2^bits, not canonical."""
    if not isinstance(part, Tensor):
        return unpack_words(part, bits, shape)
    if part.device.type == "cpu":
        return unpack_words_there(part, bits, shape)
    return unpacked(part, bits, shape).to(NARROWEST[word_bytes(bits)])


def on_device(parts: Sequence[Message]) -> list[Tensor]:
    """Return the messages where all lie on a device, and none where all lie at the host. Raises `WireError` where only some
    do: what is left out of a sum would make it wrong unnoticed."""
    there = [part for part in parts if isinstance(part, Tensor)]
    if there and len(there) < len(parts):
        raise WireError(f"{len(there)} of {len(parts)} messages lie on a device; all must, or none")
    return there


def joined(parts: Sequence[Message]) -> Message:
    """Return one message of several; all lie at the host, or all on one device. Raises `WireError` for a mixture."""
    there = on_device(parts)
    if len(there) > MOST_IN_ONE:
        settle()
    if there:
        return torch.cat(there) if len(there) > 1 else there[0]
    return b"".join(part for part in parts if not isinstance(part, Tensor))


def size(message: Message) -> int:
    """Return the bytes of a message."""
    return message.numel() if isinstance(message, Tensor) else len(message)


def at_host(message: Message) -> bytes:
    """Return a message's bytes; waits for the device that made it. From now on the host knows what the message says."""
    if not isinstance(message, Tensor):
        return bytes(message)
    found: Tensor = there(message).cpu()
    known(message, lambda: found)
    return found.numpy().tobytes()


def delivered(messages: Sequence[bytes | bytearray | memoryview], device: torch.device) -> list[Message]:
    """Return what has arrived where it is computed with; it goes up with what else waits (`mpc.device.upload`)."""
    if device.type == "cpu":
        return [memoryview(message) for message in messages]
    return list(_going_up([np.frombuffer(message, np.uint8) for message in messages], device))


def _going_up(parts: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return integers of the host on a device; nobody may write into them any more. The host knows what they are."""
    nodes = [upload.going_up(part, device) for part in parts]
    if sum(part.nbytes for part in parts) >= upload.AT_ONCE:
        upload.bring(nodes)
    return [Deferred(one) for one in nodes]


def sent_up(x: Tensor, device: torch.device) -> Tensor:
    """Return integers that the host has computed where they are computed with; nobody may write into them any more."""
    return x if device.type == "cpu" else _going_up([x.numpy()], device)[0]
