"""CrypTen's tuple provider fed by the dealer's tape.

Every method is called by CrypTen's protocols at a party and, in the same order, at the dealer. A party gets its shares
from the tape. The dealer draws the independent parts (`random`: no bytes are sent for them), computes the dependent ones
and hands tensors without content to the program. Tuples are used once: the tape only moves forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc import ring
from mpc.shape_tensor import broadcast, matmul_shape
from protocols.crypten.binding.communicator import plain, wrapped
from protocols.crypten.binding.requirement import require_crypten
from protocols.crypten.binding.session import CryptenSession

require_crypten()
from crypten.common.util import count_wraps  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402

Shape = Sequence[int]


def ring_product(op: str, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return `torch.<op>(a, b)` in Z_2^64; matrix products by exact limbs."""
    if op == "matmul":
        return ring.matmul(a, b)
    out: Tensor = plain(getattr(torch, op)(wrapped(a), wrapped(b), *args, **kwargs))
    return out


class TapeProvider:
    """Beaver triples and their relatives for one session. Shares in Z_2^64, encoder scale 1."""

    NAME = "TAPE"

    def __init__(self, session: CryptenSession) -> None:
        self._session = session

    def _arithmetic(self, x: Tensor) -> Any:
        return ArithmeticSharedTensor.from_shares(wrapped(self._session.held(x)), precision=0)

    def _binary(self, x: Tensor) -> Any:
        return BinarySharedTensor.from_shares(wrapped(self._session.held(x)))

    def generate_additive_triple(
        self, size0: Shape, size1: Shape, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Return uniform a and b, and c = op(a, b). Offline: 8 bytes per element of c."""
        tape = self._session.tape
        shape = _result_shape(op, size0, size1, *args, **kwargs)
        a = tape.random(f"{op} a", size0)
        b = tape.random(f"{op} b", size1)
        c = tape.dependent(f"{op} c", shape, lambda: ring_product(op, a, b, *args, **kwargs))
        return self._arithmetic(a), self._arithmetic(b), self._arithmetic(c)

    def square(self, size: Shape, device: Any = None) -> tuple[Any, Any]:
        """Return a uniform r, and r^2. Offline: 8 bytes per element."""
        tape = self._session.tape
        r = tape.random("square r", size)
        return self._arithmetic(r), self._arithmetic(tape.dependent("square rr", size, lambda: r * r))

    def generate_binary_triple(self, size0: Shape, size1: Shape, device: Any = None) -> tuple[Any, Any, Any]:
        """Return words a, b of 64 uniform bits, c = a AND b. Offline: 8 bytes per element of c."""
        tape = self._session.tape
        a = tape.random("and a", size0, kind="xor")
        b = tape.random("and b", size1, kind="xor")
        shape = broadcast(size0, size1)
        c = tape.dependent("and c", shape, lambda: a & b, kind="xor")
        return self._binary(a), self._binary(b), self._binary(c)

    def wrap_rng(self, size: Shape, device: Any = None) -> tuple[Any, Any]:
        """Return a uniform r, and how often its signed shares wrap around when they are added. Offline: 8 bytes per
        element."""
        tape = self._session.tape
        shares = tape.random_shares("wrap r", size)
        theta = tape.dependent("wrap theta", size, lambda: count_wraps(shares))
        return self._arithmetic(shares[0]), self._arithmetic(theta)

    def B2A_rng(self, size: Shape, device: Any = None) -> tuple[Any, Any]:
        """Return one uniform bit, shared by sum and by XOR. Offline: 8 bytes per element."""
        tape = self._session.tape
        r = tape.random("bit", size, bits=1, kind="xor")
        return self._arithmetic(tape.dependent("bit as sum", size, lambda: r)), self._binary(r)

    def trace(self, tracing: bool = True) -> None:
        """CrypTen's tuple cache is not used."""

    trace_once = fill_cache = trace


def _result_shape(op: str, size0: Shape, size1: Shape, *args: Any, **kwargs: Any) -> tuple[int, ...]:
    if op == "mul":
        return broadcast(size0, size1)
    if op == "matmul" and len(size0) > 1 and len(size1) > 1:
        return matmul_shape(size0, size1)
    left = torch.empty(tuple(size0), dtype=torch.int64, device="meta")
    right = torch.empty(tuple(size1), dtype=torch.int64, device="meta")
    function: Callable[..., Tensor] = getattr(torch, op)
    return tuple(function(left, right, *args, **kwargs).shape)
