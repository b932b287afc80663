"""What leaves a program to the client: values cut exactly.

A truncation (`arithmetic.truncate`) opens m = x + 2^62 + r and gives floor(x / 2^t), or one more where the low bits of m are
below those of r: a coin that parties know, m mod 2^t. A client that repeats a question and shares what it opens with one
party would learn from it what was cut, bit by bit (see `protocols.masked.output`). So where x is output, that bit is
compared and subtracted: m mod 2^t is public, the bits of r mod 2^t are dealt in XOR shares, and the tree of every other
comparison finds the borrow of their difference.

Security. m is uniform, the tree's openings are masked by dealt words, the bit is opened under a dealt one; `Suite.output`
adds a fresh sharing of zero, so that the shares of honest parties are uniform but for their sum. What a coalition of the
client and all parties but one sees is a function of the output and of fresh uniform words. Any number of parties.

Leaks: nothing; the client learns what its decoding gives (docs/security.md, "Outputs, crypten").
"""

from __future__ import annotations

from torch import Tensor

from protocols.crypten.arithmetic import Blinded
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.comparison import WIDTHS, negative, spread, to_arithmetic


def floor(s: CryptenSession, x: Tensor, count: int) -> Tensor:
    """Return floor(x / 2^count), exact, for |x| < 2^62 and count < 62. None if count is 0, else 2 + log2 of the width of a
    comparison of count + 1 bits (16, 32 or 64): 7 rounds and 20 bytes per element up to 31 bits."""
    if count == 0:
        return x
    blinded, low = Blinded.deal(s, x, count), (1 << count) - 1
    width = next(bits for bits in WIDTHS if bits > count)
    mask_bits = s.held(s.tape.dependent("floor mask bits", x.shape, lambda: spread(blinded.mask & low, width), width, "xor"))
    m = s.open(blinded.share)
    (more,) = negative(s, [((m & low).reshape(-1), mask_bits.reshape(-1), width)])
    return blinded.truncated(s, m) - to_arithmetic(s, more.reshape(x.shape))
