"""CrypTen's communicator over our channel: every collective is one simultaneous exchange, one one-way delay.

CrypTen's gloo communicator needs four one-way delays for what is one here, reports sent plus received bytes, and unpickles
objects of a length that the peer chooses. Here nothing but int64 tensors of a declared shape is exchanged; every call that
would serialise an object raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mpc.errors import ConfigurationError
from mpc.messages import at_host, delivered, packed, unpacked
from protocols.crypten.binding.requirement import require_crypten
from protocols.crypten.binding.session import CryptenSession, current_session, has_session

require_crypten()
from crypten.communicator import Communicator  # noqa: E402
from crypten.cuda import CUDALongTensor  # noqa: E402
from torch.distributed import ReduceOp  # noqa: E402

_KINDS = {ReduceOp.SUM: "sum", ReduceOp.BXOR: "xor"}


def plain(x: Any) -> Tensor:
    """Return the int64 tensor inside CrypTen's wrapper for CUDA, or x itself."""
    out: Tensor = x.tensor() if isinstance(x, CUDALongTensor) else x
    return out


def wrapped(x: Tensor) -> Any:
    """Return x as CrypTen wants it: CUDA tensors inside its wrapper."""
    return CUDALongTensor(x) if x.is_cuda else x


def _like(flat: Tensor, parts: Sequence[Tensor]) -> list[Any]:
    """Cut a vector into pieces of the parts' shapes."""
    out, start = [], 0
    for x in parts:
        out.append(wrapped(flat[start : start + x.numel()].reshape(x.shape)))
        start += x.numel()
    return out


def _kind(op: Any) -> str:
    if op not in _KINDS:
        raise ConfigurationError(f"collective operation must be a sum or an XOR, got {op}")
    return _KINDS[op]


class ChannelCommunicator(Communicator):  # type: ignore[misc]
    """Collectives of one session. Methods take and return int64 tensors of any shape, the same at every party."""

    BYTES_PER_ELEMENT = 8

    def __init__(self, session: CryptenSession) -> None:
        self._session = session
        self._name = f"rank{session.party}"
        self.reset_communication_stats()

    @classmethod
    def is_initialized(cls) -> bool:
        """Whether a session is in force in this thread."""
        return has_session()

    @classmethod
    def get(cls) -> Any:
        """Return the communicator of this thread's session."""
        return current_session().communicator

    def get_rank(self) -> int:
        """Return this party's index."""
        return self._session.party

    def get_world_size(self) -> int:
        """Return the number of compute parties."""
        return self._session.parties

    def get_name(self) -> str:
        """Return a name of this party."""
        return self._name

    def set_name(self, name: str) -> None:
        """Change the name."""
        self._name = name

    # ---- one round each ------------------------------------------------------------------------------------------
    def all_reduce(self, tensor: Any, op: Any = ReduceOp.SUM, async_op: bool = False, batched: bool = False) -> Any:
        """Open: return the sum (XOR) of all parties' tensors at every party. batched: a list of tensors, in the same
        round."""
        self._synchronous(async_op)
        kind = _kind(op)
        parts = list(tensor) if batched else [tensor]
        opened = [wrapped(x) for x in self._session.open_together([(plain(x), 64, kind) for x in parts])]
        return opened if batched else opened[0]

    def reduce(self, tensor: Any, dst: int, op: Any = ReduceOp.SUM, async_op: bool = False, batched: bool = False) -> Any:
        """Return the sum (XOR) of all parties' tensors at party `dst`, None elsewhere."""
        self._synchronous(async_op)
        kind = _kind(op)
        parts = [plain(x) for x in tensor] if batched else [plain(tensor)]
        gathered = self._gather(torch.cat([x.reshape(-1) for x in parts]), dst)
        if gathered is None:
            return None
        total = gathered[0]
        for part in gathered[1:]:
            total = total ^ part if kind == "xor" else total + part
        sums = _like(total, parts)
        return sums if batched else sums[0]

    def gather(self, tensor: Any, dst: int, async_op: bool = False) -> list[Any] | None:
        """Return all parties' tensors at party `dst`, None elsewhere."""
        self._synchronous(async_op)
        gathered = self._gather(plain(tensor), dst)
        return None if gathered is None else [wrapped(x) for x in gathered]

    def all_gather(self, tensor: Any, async_op: bool = False) -> list[Any]:
        """Return all parties' tensors at every party."""
        self._synchronous(async_op)
        x = plain(tensor)
        return [wrapped(part) for part in self._exchange(x, to=self._peers(), of=self._peers())]

    def broadcast(self, tensor: Any, src: int, async_op: bool = False, batched: bool = False) -> Any:
        """Return party `src`'s tensor at every party; the others give a tensor of the same shape."""
        self._synchronous(async_op)
        parts = [plain(x) for x in tensor] if batched else [plain(tensor)]
        flat = torch.cat([x.reshape(-1) for x in parts])
        mine = self._session.party == src
        out = self._exchange(flat, to=self._peers() if mine else (), of=() if mine else (src,))[src]
        result = _like(out, parts)
        return result if batched else result[0]

    def barrier(self) -> None:
        """Nothing: every collective already waits for all parties."""

    # ---- helpers -------------------------------------------------------------------------------------------------
    def _peers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self._session.parties) if i != self._session.party)

    def _gather(self, x: Tensor, dst: int) -> list[Tensor] | None:
        mine = self._session.party == dst
        parts = self._exchange(x, to=() if mine else (dst,), of=self._peers() if mine else ())
        return parts if mine else None

    def _exchange(self, x: Tensor, to: Sequence[int], of: Sequence[int]) -> list[Tensor]:
        session = self._session
        size = 8 * x.numel()
        if session.channel is None:
            session.count_exchange(size * len(to), size * len(of), len(to))
            return [session.without_content(x.shape) for _ in range(session.parties)]
        payload = at_host(packed(x, 64)) if to else b""
        received = session.channel.exchange({peer: payload for peer in to}, {peer: size for peer in of})
        parts = dict(zip(received, delivered(list(received.values()), x.device), strict=True))
        return [unpacked(parts[i], 64, x.shape) if i in parts else x for i in range(session.parties)]

    @staticmethod
    def _synchronous(async_op: bool) -> None:
        if async_op:
            raise ConfigurationError("asynchronous collectives are not supported (async_op must be False)")


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigurationError(f"CrypTen's communicator call '{name}' is not supported: only tensors of a shape that "
                                 "both sides know are exchanged, in collectives")  # fmt: skip

    return refuse


for _name in (
    *("send_obj", "recv_obj", "broadcast_obj", "scatter", "send", "recv", "isend", "irecv"),
    *("get_ttp_rank", "get_distributed_backend", "initialize", "shutdown"),
):
    setattr(ChannelCommunicator, _name, _refused(_name))
