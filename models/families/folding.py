"""Folding a normalisation's centring, gain and offset into the linear layers around it (see `protocols.suite.Norm`).

A LayerNorm looks at h - mean(h) only, and everything that is added to the residual stream h comes out of a weight. So the
means are taken out of the *writing* weights (embeddings, attention output, feed-forward output), the residual stream has
mean zero by itself, and LayerNorm becomes RMSNorm: one secret sum less in every layer, on every suite.

Where norms stand before and after each part, all that is written to the residual stream are embeddings and gains, and all
that reads it divides by its size. So the stream may be held smaller by any power of two, embeddings and gains with it
(a family's `factors`), and the epsilon of what reads it by that power's square (`Architecture.stream_epsilon`): no result
changes. Gemma 3 needs it: its stream's entries reach 98 000 (1B), 296 000 (4B) and 778 000 (12B; Owen et al., arXiv
2503.22329, their published logs), its gains thousands, which rings have no room for.
"""

from __future__ import annotations

from torch import Tensor


def folded_weight(weight: Tensor, gain: Tensor, centred: bool) -> Tensor:
    """Return diag(gain) W, and with `centred` (I - 11^T/D) in front of it. weight: float64 [D, out], gain: float64 [D]."""
    scaled = gain[:, None] * weight
    return scaled - scaled.mean(0, keepdim=True) if centred else scaled


def folded_bias(weight: Tensor, offset: Tensor, bias: Tensor | None) -> Tensor:
    """Return offset W + b. weight: float64 [D, out], offset: float64 [D], bias: float64 [out] or None."""
    moved = offset @ weight
    return moved if bias is None else moved + bias


def centred_rows(weight: Tensor) -> Tensor:
    """Return a weight that writes to the residual stream, without the mean over the width. weight: float64 [..., D]."""
    return weight - weight.mean(-1, keepdim=True)


def centred_heads(weight: Tensor) -> Tensor:
    """Return a weight that gives queries or keys, float64 [..., heads, C], without the mean over a head's channels: the
    LayerNorm of a head is then its RMSNorm."""
    return weight - weight.mean(-1, keepdim=True)
