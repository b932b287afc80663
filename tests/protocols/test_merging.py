"""What merging takes: scans, runs, averages, rows of length 1, similarities; every suite against numpy, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocols.masked.suite import MaskedSuite
from protocols.merging import Merging
from tests.protocols.suite_harness import SECURE, run_plain, run_secure
from tests.protocols.test_selection import grid

torch.manual_seed(5)
UNIT = 2.0**-12
ALL = [("plain", 1), *SECURE]


def run(suite: str, parties: int, program: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    return run_plain(program, inputs) if suite == "plain" else run_secure(suite, parties, program, inputs, **options)


def marks(count: int, of: int, rows: int = 3) -> Tensor:
    """`count` ones in rows of `of`: at random places, all at the front, all at the end."""
    found = torch.zeros(rows, of, dtype=torch.float64)
    found[0, torch.randperm(of)[:count]] = 1
    found[1, :count] = 1
    found[2, of - count :] = 1
    return found


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize(("count", "of"), [(1, 1), (1, 7), (3, 8), (5, 37), (37, 37)])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_copies_the_last_marked_value(suite: str, parties: int, count: int, of: int, reverse: bool) -> None:
    m = marks(count, of)
    places = torch.arange(of) * 3 - 7

    async def program(s: Any, x: Any) -> Any:
        kept = await s.keep_largest(x, count, 2.0)
        return await s.copy_scan(kept, kept * places, reverse)

    (found,) = run(suite, parties, program, [m])
    for row, of_marks in zip(found, m, strict=True):
        last, expected = 0, []
        for place in reversed(range(of)) if reverse else range(of):
            last = int(places[place]) if of_marks[place] else last
            expected.append(last)
        assert row.tolist() == (expected[::-1] if reverse else expected)


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize(("count", "of"), [(1, 6), (3, 9), (9, 40)])
def test_runs_are_added_up(suite: str, parties: int, count: int, of: int) -> None:
    ends = marks(count, of)
    ends[:, -1], ends[1, count - 1], ends[0] = 1, float(count == 1), marks(count, of)[2].flip(0)
    ends[0, 0], ends[0, -1] = float(count > 1), 1
    ends[0, count - 1] = float(count < 2 and of == 1)
    for row in ends:  # the last place is an end, and there are `count` of them
        row[row.nonzero()[: int(row.sum()) - count, 0]] = 0
        row[(row == 0).nonzero()[: count - int(row.sum()), 0]] = 1
    x, y = torch.randn(3, of, 2).double() * 8, torch.randn(3, of, 3).double()

    async def program(s: Any, m: Any, *rows: Any) -> Any:
        kept = await s.keep_largest(m, count, 2.0)
        held = [await s.mask_for_cache(rows[0]), rows[1]]
        return await s.merge_runs(kept, held, count)

    for found, rows in zip(run(suite, parties, program, [ends, x, y]), (x, y), strict=True):
        for g in range(3):
            cuts = ends[g].nonzero()[:-1, 0] + 1
            expected = torch.stack([part.sum(0) for part in torch.tensor_split(rows[g], cuts.tolist())])
            assert (found[g] - expected).abs().max() < UNIT * of


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize(("least", "most"), [(1.0, 1.0), (1.0, 4.0), (1.0, 700.0), (0.0625, 33.0)])
def test_averages(suite: str, parties: int, least: float, most: float) -> None:
    weights = torch.tensor([[least, most, (least + most) / 2, (least * most) ** 0.5]]).double()[..., None]
    weights = (weights * 1024).round() / 1024
    means = torch.cat(
        [torch.randn(1, 4, 5).clamp(-5, 5), torch.full((1, 4, 1), 5.0), torch.full((1, 4, 1), -5.0)], -1
    ).double()
    like = torch.zeros(1, 1, 1)

    async def program(s: Any, sums: Any, w: Any, like: Any) -> Any:
        own = s.with_bound(like, 32.0)
        w = await s.rounded(w)
        mean = await s.averaged(sums, w, own, (least, most))
        return [await s.mask_for_cache(mean), await s.reciprocal(w, least, most)]

    mean, inverse = run(suite, parties, program, [means * weights, weights, like], **LARGE.get(suite, {}))
    assert (mean - means).abs().max() < 2 * UNIT / min(1.0, least)
    assert ((inverse * weights - 1).abs().max()) < 2.0**-13


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize("most", [0.5, 4.0, 200.0])
def test_exponentials_of_what_is_below_zero(suite: str, parties: int, most: float) -> None:
    x = torch.cat([torch.linspace(0, most, 40).double(), torch.tensor([0.0, 2.0**-14, most]).double()])

    async def program(s: Any, v: Any) -> Any:
        return await s.exp_negative(v, most)

    (found,) = run(suite, parties, program, [x], **LARGE.get(suite, {}))
    assert (found - torch.exp(-x)).abs().max() < UNIT


@pytest.mark.parametrize("parties", [2, 3])
def test_exponentials_of_a_suite_without_its_own_way(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Merging` says in terms of others, which CrypTen's own functions are computed by."""
    monkeypatch.setattr(MaskedSuite, "exp_negative", Merging.exp_negative)
    x = torch.linspace(0, 9, 40).double()

    async def program(s: Any, v: Any) -> Any:
        return await s.exp_negative(v, 9.0)

    (found,) = run("masked", parties, program, [x])
    assert (found - torch.exp(-x)).abs().max() < 2.0**-11


LARGE: dict[str, dict[str, Any]] = {"masked": {"activation": 12}}


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize("channels", [2, 4, 24])
def test_rows_of_length_one(suite: str, parties: int, channels: int) -> None:
    x = torch.randn(2, 9, channels).double()
    x += x.sign() * 0.125
    x[:, 0] *= 0.25 / x[:, 0].norm(dim=-1, keepdim=True)
    x[:, 1] *= 100 / x[:, 1].norm(dim=-1, keepdim=True)
    x[:, 2] = 0
    wide = x.norm(dim=-1, keepdim=True)

    async def program(s: Any, v: Any) -> Any:
        return await s.normalised(await s.mask_for_cache(v))

    (found,) = run(suite, parties, program, [x])
    assert torch.equal(found[:, 2], torch.zeros(2, channels).double())
    expected = x / wide.clamp(min=1e-9)
    assert ((found - expected).abs() * wide.clamp(max=1.0)).max() < 2.0**-11


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize("least", [None, 0.625])
@pytest.mark.parametrize(("gone", "kept"), [(1, 1), (7, 5), (5, 40)])
def test_what_is_most_similar(suite: str, parties: int, least: float | None, gone: int, kept: int) -> None:
    """Rows of four channels of one size: similarities are multiples of a half, so many are equal; the first one counts."""
    x, y = (torch.randint(0, 2, (2, n, 4)).double() * 2 - 1 for n in (gone, kept))
    rows = grid(2, gone, 3)

    async def program(s: Any, x: Any, y: Any, rows: Any) -> Any:
        near, far = await s.normalised(x), await s.normalised(y)
        assign, best = await s.most_similar(near, far, least)
        return [assign, best, await s.scatter_add(assign, await s.select(assign.sum(-1).reshape(2, gone, 1), rows))]

    assign, best, sums = run(suite, parties, program, [x, y, rows])
    for g in range(2):
        u = x[g].numpy() @ y[g].numpy().T / 4
        found, at = u.max(-1), u.argmax(-1)
        ok = np.ones(gone) if least is None else (found > least).astype(float)
        expected = np.eye(kept)[at] * ok[:, None]
        # similarities of rounded rows may differ in the last place where exact ones are equal
        shown = assign[g].numpy()
        assert (shown.sum(-1) == ok).all()
        assert np.abs((shown * u).sum(-1) - found * ok).max() < 2.0**-10
        if suite == "plain":
            assert (shown == expected).all()
        assert np.abs(best[g].numpy() - found * ok).max() < 2.0**-10
        assert np.abs(sums[g].numpy() - shown.T @ rows[g].numpy()).max() < UNIT * gone
