"""CrypTen's own functions, unchanged, as the baseline of reports (`crypten_own=True`).

Weights are opened at every product, truncation, softmax, exp, reciprocal, inv_sqrt and max are CrypTen's. They fail on
ordinary activations: softmax when sum exp(x - max) passes 256 and on masks of -1 000 (a public mask is added as -100
here), inv_sqrt outside 0.04 to 170, tanh beyond 263, gelu by tanh beyond about 20, two-party truncation with probability
|x|/2^47 per product at 16 fraction bits. CrypTen has no GELU; both forms are its tanh's, since its erf is unusable. Its
arg-max breaks ties at random.

Leaks: nothing (docs/security.md, "CrypTen's own functions").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from crypten.mpc import MPCTensor
from torch import Tensor

from mpc.shape_tensor import broadcast
from protocols.crypten.binding.library import CryptenSession, wrapped
from protocols.crypten.value import CryptenValue
from protocols.suite import Activation, Norm

MASKED = -100.0


class CryptenOwn:
    """CrypTen's functions on our values; all with the session's fraction bits in and out. Costs: see the ledger."""

    def __init__(self, session: CryptenSession) -> None:
        self._session = session
        self._bits = session.precision

    def _in(self, x: CryptenValue) -> Any:
        # a copy: CrypTen's functions write into their arguments
        share = x.raised(max(self._bits, x.fraction_bits)).clone()
        return MPCTensor.from_shares(wrapped(share), precision=max(self._bits, x.fraction_bits))

    def _out(self, x: Any) -> CryptenValue:
        return CryptenValue.from_tensor(x, self._session.party)

    def mul(self, x: CryptenValue, y: CryptenValue) -> CryptenValue:
        """Return the Beaver product and CrypTen's truncation."""
        left = self._in(x)
        shape = broadcast(x.shape, y.shape)
        if tuple(x.shape) != shape:
            left.share = left.share.expand(shape).clone()
        return self._out(left.mul(self._in(y)))

    def matmul(self, x: CryptenValue, y: CryptenValue) -> CryptenValue:
        """Return the Beaver matrix product and CrypTen's truncation."""
        return self._out(self._in(x).matmul(self._in(y)))

    def scale(self, x: CryptenValue, factor: Tensor | float) -> CryptenValue:
        """Return x times a public real, encoded by CrypTen."""
        public = factor.to(self._session.device) if isinstance(factor, Tensor) else factor
        return self._out(self._in(x).mul(public))

    def rsqrt_moment(self, x: CryptenValue, norm: Norm) -> CryptenValue:
        """Return the inv_sqrt(variance + epsilon)."""
        inner = self._in(x)
        width = x.shape[-1]
        if norm.kind == "layer":
            inner = inner - inner.sum(-1, keepdim=True).div(width)
        return self._out((inner.square().sum(-1, keepdim=True).div(width) + norm.epsilon).inv_sqrt())

    def softmax(self, x: CryptenValue, mask: Tensor | None) -> CryptenValue:
        """CrypTen's softmax; masked positions get about exp(-100), not 0."""
        inner = self._in(x)
        if mask is not None:
            keep = mask.expand(x.shape).to(self._session.device, torch.float32)
            inner = inner * keep + (1 - keep) * MASKED
        return self._out(inner.softmax(-1))

    def activation(self, x: CryptenValue, kind: Activation) -> CryptenValue:
        """Return relu, x sigmoid(x), or both GELUs by tanh."""
        inner = self._in(x)
        if kind == "relu":
            return self._out(inner.relu())
        if kind == "silu":
            return self._out(inner * inner.sigmoid())
        cubic = inner * inner.square() * 0.044715
        return self._out(inner * ((inner + cubic) * math.sqrt(2 / math.pi)).tanh().add(1) * 0.5)

    def less_than_zero(self, x: CryptenValue) -> CryptenValue:
        """CrypTen's comparison."""
        return self._out(self._in(x)._ltz())

    def max(self, x: CryptenValue) -> CryptenValue:
        """CrypTen's maximum."""
        return self._out(self._in(x).max(-1, keepdim=True)[0])

    def argmax(self, x: CryptenValue) -> CryptenValue:
        """CrypTen's one-hot arg-max; ties are broken at random."""
        return self._out(self._in(x).argmax(-1, one_hot=True))
