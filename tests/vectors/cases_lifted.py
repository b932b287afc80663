"""Vectors of lifted factors, of rings of more than 64 bits, and of one-hot vectors dealt as bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpc.wide import Wide
from protocols.masked import lifted, veiled, wide
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.signed_one_hot import signed_look_up, signed_one_hot
from protocols.masked.suite import MaskedSuite
from tests.vectors.cases_masked import cases
from tests.vectors.recording import Case, Input

Numbers = Shared | WideShared


def _ends(bits: int) -> Input:
    """The largest and smallest |x| < 2^(bits - 2), and one between."""
    most = (1 << (bits - 2)) - 1
    return Input(torch.tensor([most, -most, -(most // 5)]), bits, 0)


async def _cut(c: Context, x: Numbers, count: int) -> Shared:
    """`count` bits fewer, opened, of what a word does not hold."""
    return c.shared(await wide.open_cut_wide(c, x, count)) if isinstance(x, WideShared) else x


async def _multiplied(s: MaskedSuite, x: Masked, y: Masked, bits: int, count: int) -> Shared:
    return await _cut(s.context, lifted.multiply(s.context, "product", x, y, bits), count)


async def _known(s: MaskedSuite, x: Masked, bits: int, count: int) -> list[Shared]:
    """x times a number that the dealer knows, and that number."""
    c = s.context

    def known() -> Tensor:
        return (x.lam & 255) - 128

    found = await _cut(c, lifted.multiply_known(c, "known", x, known, 0, bits), count)
    return [found, Shared(c.deal("number", x.shape, 16, known), 16, 0)]


async def _veiled(s: MaskedSuite, x: Masked, bits: int, count: int) -> list[Shared]:
    """As `_known`, opened behind a veil."""
    c = s.context

    def known() -> Tensor:
        return (x.lam & 255) - 128

    behind = veiled.sum_known(c, "known", [(x, lifted.Factor(known, 0))], bits)
    found = c.shared(await veiled.open_cut(c, behind, count))
    return [found, Shared(c.deal("number", x.shape, 16, known), 16, 0)]


async def _lifted(s: MaskedSuite, x: Masked, bits: int, count: int) -> Shared:
    return await _cut(s.context, lifted.lift(s.context, x, bits), count)


async def _dealt(s: MaskedSuite, x: Masked, bits: int, count: int) -> Shared:
    """The square of a mask, dealt and cut."""
    c = s.context
    whole = wide.deal(c, "wide", x.shape, bits, lambda: Wide.of(x.lam) * x.lam)
    if not c.evaluating:
        whole = Wide(c.blank(x.shape), c.blank(x.shape))
    assert isinstance(whole, Wide)
    return await _cut(c, WideShared(whole, bits, 0), count)


async def _signed(s: MaskedSuite, x: Shared, low: int, width: int, bits: int) -> list[Shared]:
    """What is read of two tables, and the sign."""
    c, j = s.context, torch.arange(1 << width)
    hot = signed_one_hot(c, await open_value(c, x), low, width, bits)
    j = (j[:, None] - j) % len(j)
    found = signed_look_up(c, hot, torch.stack([5 * j * j - 100, 7 - j * j * j]), bits)
    return [found, Shared(c.deal("sign", x.shape, bits, hot.sign), bits, 0)]


def _listed(**arguments: Any) -> dict[str, Any]:
    return arguments


def lifted_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    rows = Input(torch.tensor([[1000, -(1 << 16), 3], [(1 << 16) - 1, 0, -1]]), 20, 4)
    small = Input(torch.tensor([5, -100, 127]), 64, 10)
    return {
        "lifted": cases("lifted product", _multiplied, [_ends(34), _ends(40)], _listed(bits=80, count=20))
        + cases("lifted product", _multiplied, [_ends(20), small], _listed(bits=60, count=0))
        + cases("known factor", _known, [_ends(34)], _listed(bits=72, count=12))
        + cases("veiled factor", _veiled, [_ends(34)], _listed(bits=72, count=12))
        + cases("veiled factor", _veiled, [_ends(30)], _listed(bits=52, count=10))
        + cases(
            "sums of squares", lambda s, x, bits: lifted.square_sums(s.context, "squares", x, bits), [rows], _listed(bits=38)
        )
        + cases("lifted", _lifted, [_ends(33)], _listed(bits=70, count=8)),
        "wide": cases("wide deal", _dealt, [_ends(50)], _listed(bits=100, count=36))
        + cases("lifted product", _multiplied, [_ends(64), _ends(62)], _listed(bits=128, count=64)),
        "signed_one_hot": [
            c
            for width in (3, 7)
            for c in cases(
                "signed one-hot",
                _signed,
                [Input(torch.tensor([5, -1, 2]), width, 0)],
                _listed(low=0, width=width, bits=30),
                opened=False,
            )
        ],
    }
