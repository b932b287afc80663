"""Sums of table entries over the set bits of many short rows of bits, each row with a table that a public digit names.

Two ways with one result. Eight bits at a time, from tables of the sums that an octet can have: any device. Or, where rows
are many and the processor multiplies 8-bit integers, rows of one public digit together: their bits times the 8-bit digits of
its entries, one product for all tables. Nothing that is done, and none of its order, depends on the bits but the places that
the first way looks up at.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mpc.byte_matmul import exact

OCTET = 8
PIECE = 1 << 15  # rows that are read at a time octet by octet: they stay in the cache
GROUPED = 1 << 18  # rows that are grouped at a time
LEAST = 64  # rows of a digit from which a product pays


def bit_sums(words: Tensor, digits: Tensor, tables: Tensor) -> Tensor:
    """Return the sum over the set bits j of row i of tables[t, digits[i], j]: [tables, n], int64.

    words: the bits of each row, int64 [n, words], the lowest first. digits: public [n], below 2^width. tables: public
    integers [tables, 2^width, 2^width], 2^width >= 8; each sum must fit 64 bits."""
    if words.device.type == "cpu" and len(words) >= LEAST * tables.shape[-1] and exact():
        return _by_groups(words, digits, tables)
    return _by_octets(words, digits, tables)


def _by_octets(words: Tensor, digits: Tensor, tables: Tensor) -> Tensor:
    octets = words.contiguous().view(torch.uint8).reshape(-1, OCTET * words.shape[-1])
    high, count, places = digits << OCTET, len(words), tables.shape[-1] // OCTET
    out = torch.zeros((len(tables), count), dtype=torch.int64, device=words.device)
    sums = _octet_sums(tables)
    for start in range(0, count, PIECE):
        cut = slice(start, start + PIECE)
        for place in range(places):
            index = high[cut] | octets[cut, place]
            for total, entries in zip(out, sums[:, place], strict=True):
                total[cut] += entries.take(index)
    return out


@lru_cache(maxsize=32)
def _octet_sums(tables: Tensor) -> Tensor:
    """Return [tables, 2^width / 8, 2^width 256]: of place i and index 256 m + b the sum over the set bits k of b of T[m, 8 i
    + k]. Kept for tables that are asked for again: these are public and few."""
    count, size = tables.shape[:2]
    octet = torch.arange(256, device=tables.device)
    bits = (octet[None] >> torch.arange(OCTET, device=tables.device)[:, None]) & 1  # [bit, octet]
    places = tables.reshape(count, size, size // OCTET, OCTET)  # [tables, m, place, bit]
    sums = torch.stack([(table[..., None] * bits).sum(2) for table in places])  # [tables, m, place, octet]
    return sums.transpose(1, 2).reshape(count, size // OCTET, -1)


def _by_groups(words: Tensor, digits: Tensor, tables: Tensor) -> Tensor:
    """As `_by_octets`: rows in the order of their public digits, and back."""
    rows, keys = words.contiguous().numpy(), digits.numpy().astype(np.uint16)
    out = torch.empty((len(tables), len(rows)), dtype=torch.int64)
    of_tables = _digit_rows(tables)
    for start in range(0, len(rows), GROUPED):
        cut = slice(start, start + GROUPED)
        order = np.argsort(keys[cut], kind="stable")
        counts = np.bincount(keys[cut], minlength=tables.shape[1]).tolist()
        found = _grouped(rows[cut].take(order, 0), counts, of_tables).numpy()
        for whole, part in zip(out.numpy(), found, strict=True):
            whole[cut][order] = part
    return out


def _grouped(rows: np.ndarray, counts: list[int], of_tables: Tensor) -> Tensor:
    """Return the sums [tables, n] of rows in the order of their digits, of which there are `counts`."""
    _, digits, tables, size = of_tables.shape
    octets = rows.view(np.uint8)[:, : size // OCTET]
    found = torch.empty((tables, len(rows)), dtype=torch.int64)
    start = 0
    for count, table in zip(counts, of_tables, strict=True):
        stop = start + count
        if count == 0:
            continue
        bits = np.unpackbits(octets[start:stop].reshape(-1), bitorder="little").view(np.int8).reshape(count, size)
        parts = torch._int_mm(table.flatten(0, 1), torch.from_numpy(bits).t()).view(digits, tables, count)
        total = found[:, start:stop]
        total.copy_(parts[0].add_(parts[1], alpha=1 << OCTET))  # a sum of 2^width digits of 8 bits leaves room for it
        for i in range(2, digits, 2):
            total.add_(parts[i].add_(parts[i + 1], alpha=1 << OCTET), alpha=1 << OCTET * i)
        start = stop
    return found


@lru_cache(maxsize=32)
def _digit_rows(tables: Tensor) -> Tensor:
    """Return the signed digits of 8 bits of tables [tables, m, j], an even number of them: int8 [m, digits, tables, j]."""
    most = max(int(tables.max()), -int(tables.min()) - 1)
    count = min(8, -(-(most.bit_length() + 2) // 16) * 2)
    offset = int.from_bytes(b"\x80" * count, "little", signed=count == 8)
    octets = ((tables + offset) ^ offset).unsqueeze(-1).view(torch.int8)[..., :count]
    return octets.permute(1, 3, 0, 2).contiguous()
