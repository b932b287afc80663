"""Every gate by the name that vectors call it: our program, and what the opened result must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tests.vectors.independent import (
    activations,
    bits,
    curves,
    leaving,
    linear,
    lookup,
    order,
    partition,
    routing,
    rows,
    softmax,
    tape_entries,
    wide,
)
from tests.vectors.independent.crypten_gates import CRYPTEN
from tests.vectors.independent.formats import U, reduce, signed, tensor, total
from tests.vectors.independent.results import Judge, by_rank, close, exact, flagged, hots, ring, softmax_of
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World, on_parties, together

Program = Callable[..., Any]


@dataclass(frozen=True)
class Gate:
    """program(w, *shared inputs, **arguments) -> a `Shared`, or a list; judge(*inputs as real numbers, **arguments)."""

    program: Program
    judge: Judge


def _opened(f: Callable[..., Any], judge: Judge) -> Gate:
    """A gate whose inputs are opened first, in one round; f may be a generator or a plain function."""

    def program(w: World, *xs: Shared, **arguments: Any) -> Steps:
        ms = yield from together(*(w.open(x) for x in xs))
        found = f(w, *ms, **arguments)
        return (yield from found) if hasattr(found, "send") else found

    return Gate(program, judge)


# ---- programs --------------------------------------------------------------------------------------------------------
def _bit(f: Callable[..., Steps]) -> Callable[..., Steps]:
    def program(w: World, x: Masked, **arguments: Any) -> Steps:
        wanted = arguments.pop("result")
        bit = yield from f(w, x, **arguments)
        return bit.times(x) if wanted == "times" else bit.share(64)

    return program


def _digits(w: World, x: Masked, widths: Sequence[int]) -> Steps:
    found = yield from lookup.exact_digits(w, x, widths)
    return [d.shared for d in found]


def _open_cut(w: World, x: Shared, count: int) -> Steps:
    return (yield from linear.open_cut(w, x, count)).shared


def _raised(w: World, x: Shared, count: int, bits: int, frac: int, wraps: bool) -> Steps:
    opened = yield from w.open(x)
    return (yield from linear.raise_ring(w, opened.noted(wraps), count, bits)).shared


def _weight(w: World, x: Shared, weight: Shared) -> Steps:
    kept = yield from w.open(weight)
    opened = yield from w.open(x)
    return linear.weight_product(w, opened, kept)


def _gain(w: World, x: Shared, vector: Shared) -> Steps:
    kept = yield from w.open(vector)
    opened = yield from w.open(x)
    return linear.gain(w, opened, kept)


def _look_up(w: World, index: Shared, table: Shared, bits: int) -> Steps:
    kept = yield from w.open(table)
    size = table.shape[0]
    width = max(1, (size - 1).bit_length())
    places = yield from w.open(index.to(width))
    hot = lookup.one_hot(w, places, 0, width, bits).x
    rows_of = hot[..., :size].copy()
    rows_of[..., : hot.shape[-1] - size] += hot[..., size:]
    opened = yield from w.open(Shared(reduce(rows_of, bits), bits, 0))
    return linear.product(w, "embed", opened, kept.to(bits), np.matmul)


def _look_up_by_bits(w: World, index: Shared, table: Shared, bits: int) -> Steps:
    kept = (yield from w.open(table)).to(bits)
    size = table.shape[0]
    width = max(1, (size - 1).bit_length())
    places = yield from w.open(index.to(width))
    hot = lookup.one_hot(w, places, 0, width, 1).x
    rows_of = hot[..., :size].copy()
    rows_of[..., : hot.shape[-1] - size] ^= hot[..., size:]
    rows_of &= U(1)
    rho = w.random("mask bits", rows_of.shape[1:], 1)
    whole = np.bitwise_xor.reduce(rho, 0)
    own = w.deal("row masks", whole.shape, bits, whole)
    of_masks = w.deal("embed", (len(whole), table.shape[1]), bits, whole @ kept.mask)
    to_send = np.pad(rows_of ^ rho, [(0, 0), (0, 0), (0, -size % 8)])  # a row is sent in whole bytes
    m = (yield Open(to_send, 1, "xor"))[:, :size]
    tau = np.bitwise_xor.reduce(rows_of & (m ^ U(1)), -1)
    product = on_parties(lambda shared, masks, term: m @ shared - masks @ kept.m + term, kept.shared.x, own, of_masks)
    bit = w.random("mask bits", tau.shape[1:], 1)
    lam = w.random("open", product.shape[1:], bits)
    opened, z = yield from together(_asked(Open(tau ^ bit, 1, "xor")), _asked(Open(product + lam, bits)))
    turned = U(1) - U(2) * np.bitwise_xor.reduce(bit, 0)[:, None]
    sign = w.deal("row signs", turned.shape, bits, turned)
    signed_mask = w.deal("row signs: mask", z.shape, bits, turned * total(lam, bits))
    out = (U(1) - U(2) * opened[:, None]) * (z * sign - signed_mask)
    return Shared(reduce(out, bits), bits, table.frac)


def _veiled(w: World, x: Shared, y: Shared, count: int, frac: int) -> Steps:
    a = yield from w.open(x)
    b = yield from w.open(y)
    bits = min(a.bits, b.bits)
    fresh = w.random("matmul", (a.shape[0], b.shape[1]), bits)
    share = on_parties(lambda lx, ly, r: r - lx @ b.m - a.m @ ly, a.lam, b.lam, fresh)
    share[0] += a.m @ b.m
    veil = reduce((total(fresh, bits) - a.mask @ b.mask) * U(7879), bits)
    share = reduce(share * U(7879), bits)
    if w.parties == 2:
        share[0] += U(1 << (count - 1))
        m = yield Open(reduce(share, bits) >> U(count), bits - count)
    else:
        m = (yield Open(share, bits)) >> U(count)
    lam = w.deal("veil", m.shape, bits - count, veil >> U(count))
    return Masked(m, lam, bits - count, frac).shared


def _judge_veiled(x: np.ndarray, y: np.ndarray, count: int, frac: int) -> Any:
    return close(x @ y * 7879 / 2.0**13, 1.5 / 2.0**frac)


def _asked(request: Open) -> Steps:
    return (yield request)


def _ranks(w: World, x: Masked) -> Steps:
    return (yield from order.ranks(w, x)).shared


def _argmax(w: World, x: Shared, bits: int, magnitude: int) -> Steps:
    m = yield from linear.open_cut(w, x.to(10 + magnitude + 3 + x.frac - 10), x.frac - 10)
    return (yield from order.first_largest(w, m, 1 << (10 + magnitude), [x.shape[-1]], bits))


def _flags(w: World, x: Masked, limit: float, signed_value: bool, width: int) -> Any:
    found = rows.Flags(w)
    found.check("activation", 0, x, limit, signed_value, width)
    return found.take()


def _shuffle(w: World, *xs: Shared, masked: bool) -> Steps:
    values: Sequence[Shared | Masked] = xs
    if masked:
        values = yield from together(*(w.open(x) for x in xs))
    return (yield from order.shuffle(w, values))


def _curve(w: World, x: Masked, kind: str) -> Shared:
    return curves.piecewise(w, kind, curves.curve(kind), x, 44, 26, 12)


def _valued(w: World, x: Masked, width: int, bits: int) -> Shared:
    """sum_v v e_v."""
    return lookup.one_hot(w, x, 0, width, bits).each(lambda t: (t * np.arange(1 << width).astype(U)).sum(-1, dtype=U))


# ---- what results must be --------------------------------------------------------------------------------------------
def _picked_by_rank(ranks: np.ndarray, s: np.ndarray, count: int, **_: Any) -> list[Any]:
    e = (ranks[:, None] == np.arange(count)[:, None]).astype(float)
    return [exact(np.einsum("gji,grit->grjt", e, s)), exact(e)]


def _shift_judge(y: np.ndarray, rows: int, **_: Any) -> Any:
    top = y.reshape(rows, -1).max(-1)

    def check(found: Sequence[np.ndarray]) -> None:
        above = found[0] - top
        assert ((above > 0) & (above <= 8)).all(), "the shift is not above the largest score, or not near it"
        assert not found[1].any(), "a flag is set"

    return check


def _bit_judge(f: Callable[..., np.ndarray]) -> Judge:
    def judge(x: np.ndarray, result: str, **arguments: Any) -> Any:
        found = f(x, **arguments)
        return exact(found * x if result == "times" else found)

    return judge


def _floor(x: np.ndarray, count: int, frac: int, **_: Any) -> Any:
    """Floor or the next number: below one unit in the last place."""
    return close(x, 2.0 ** (count - frac) * (1 - 1e-12))


def _digit_judge(x: np.ndarray, widths: Sequence[int]) -> Any:
    out, rest = [], x.astype(np.int64) % (1 << sum(widths))
    for width in widths:
        out.append(ring(rest % (1 << width)))
        rest = rest >> width
    return out


def _marks(x: np.ndarray, k: int, **_: Any) -> Any:
    return exact(hots(by_rank(x)[..., :k], x.shape[-1]).sum(-2))


def _top_k(x: np.ndarray, k: int, order: str) -> Any:
    best = by_rank(x)[..., :k]
    if order == "indicator":
        return _marks(x, k)
    return exact(hots(best if order == "value" else np.sort(best, -1), x.shape[-1]))


def _compacted(marks: np.ndarray, x: np.ndarray, k: int) -> Any:
    return exact(x[marks > 0].reshape(len(x), k, -1))


def _partitioned(marks: np.ndarray, x: np.ndarray, k: int) -> Any:
    order = np.argsort(-marks.astype(np.int64), axis=-1, kind="stable")
    return exact(np.take_along_axis(x, order[..., None], 1))


def _selected(marks: np.ndarray, k: int, bits: int) -> Any:
    return exact(hots(np.nonzero(marks)[0], len(marks)))


def _rows_kept(*xs: np.ndarray, masked: bool) -> Callable[[Sequence[np.ndarray]], None]:
    """The same rows in some order, the same for all tensors."""

    def check(found: Sequence[np.ndarray]) -> None:
        joined = [np.concatenate([t.reshape(*t.shape[:2], -1) for t in ts], -1) for ts in (xs, found)]
        for before, after in zip(*joined, strict=True):
            assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))

    return check


def _norm_judge(x: np.ndarray, kind: str, epsilon: float, **_: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    value = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return [close(value, 2.0**-12 * value), flagged(False)]


def _einsum(equation: str) -> Judge:
    return lambda *xs: exact(np.einsum(equation, *xs))


def _power(x: np.ndarray, form: str, frac: int, bits: int) -> Any:
    exact = np.exp2(1.5 * x)
    return close(exact, 2.0**-15 * exact + 2.0 ** (1 - frac))


GATES: dict[str, Gate] = {
    "tape": Gate(tape_entries.entries, tape_entries.judge),
    "open": _opened(lambda w, x: x.shared, lambda x: exact(x)),
    "output": Gate(linear.output, lambda x: exact(x)),
    "multiply": _opened(linear.multiply, lambda x, y: exact(x * y)),
    "matmul": _opened(linear.matmul, lambda x, y: exact(x @ y)),
    "lifted product": _opened(
        lambda w, x, y, bits, count: wide.cut(w, wide.multiply(w, "product", x, y, bits), count), wide.judge_product
    ),
    "known factor": _opened(wide.known_factor, wide.judge_known),
    "veiled factor": _opened(wide.veiled_factor, partial(wide.judge_known, most=1.5)),
    "sums of squares": _opened(wide.square_sums, lambda x, bits: exact((x * x).sum(-1, keepdims=True))),
    "lifted": _opened(
        lambda w, x, bits, count: wide.cut(w, wide.lift(w, x, bits), count), lambda x, bits, count: close(x, 2.0**count)
    ),
    "wide deal": _opened(wide.square_of_mask, lambda x, bits, count: [None]),
    "signed one-hot": Gate(lookup.signed_tables, lookup.judge_signed),
    "weight product": Gate(_weight, lambda x, y: exact(x @ y)),
    "gain": Gate(_gain, lambda x, y: exact(x * y)),
    "look up": Gate(_look_up, lambda index, table, bits: exact(table[index.astype(int)])),
    "veiled product": Gate(_veiled, _judge_veiled),
    "look up by bits": Gate(_look_up_by_bits, lambda index, table, bits: exact(table[index.astype(int)])),
    "truncate": _opened(lambda w, x, count, frac: linear.truncate(w, x, count).shared, _floor),
    "truncate and lift": _opened(
        lambda w, x, count, bits, frac, offset=None: linear.truncate_and_lift(w, x, count, bits, offset), _floor
    ),
    "raised ring": Gate(_raised, _floor),
    "lift": _opened(lambda w, x, bits: linear.lift(w, x, bits), lambda x, bits: exact(x)),
    "open cut": Gate(lambda w, x, count, frac: _open_cut(w, x, count), _floor),
    "floor": _opened(leaving.cut_exactly, lambda x, count, frac: leaving.floored(x, frac - count)),
    "released": Gate(leaving.released, leaving.judge_released),
    "sample": Gate(leaving.sample, leaving.judge_sample),
    "less than zero": _opened(_bit(bits.less_than_zero), _bit_judge(lambda x: x < 0)),
    "one-hot by table": _opened(
        lambda w, x, width, bits: lookup.one_hot_table(w, x, 0, width, bits),
        lambda x, width, bits: exact(hots(x.astype(np.int64) % (1 << width), 1 << width)),
    ),
    "one-hot by point functions": _opened(
        lambda w, x, width, bits: lookup.one_hot_points(w, x, 0, width, bits),
        lambda x, width, bits: exact(hots(x.astype(np.int64) % (1 << width), 1 << width)),
    ),
    "one-hot, the cheaper way": _opened(_valued, lambda x, width, bits: exact(x % (1 << width))),
    "digits": _opened(_digits, _digit_judge),
    "zero test by points": _opened(lookup.zero_by_points, lambda x, bits: exact(x == 0)),
    "selection matrix": Gate(lambda w, x, k, bits: lookup.selection_matrix(w, x, k, bits), _selected),
    "piecewise polynomial": _opened(_curve, lambda x, kind: close(x ** float(kind.split()[1]), 2.0**-9)),
    "activation": _opened(activations.activation, lambda x, **given: close(activations.judged(x, **given), 2.0**-12)),
    "power": _opened(curves.power, lambda x, exponent, **_: close(x**exponent, 2.0**-14 * x**exponent)),
    "soft cap": _opened(softmax.soft_cap, lambda x, cap, **_: close(cap * np.tanh(x / cap), 2.0**-9)),
    "exponential": _opened(softmax.exponential, _power),
    "zero words": _opened(softmax.zero_words, lambda x, way, bits: exact(x == 0)),
    "routing": _opened(routing.route, routing.gates_of),
    "places": _opened(routing.slots, routing.places_of),
    "softmax": Gate(softmax.softmax, lambda x, **_: [close(softmax_of(x), 2.0**-11), flagged(False)]),
    "norm": Gate(rows.norm, _norm_judge),
    "range flags": _opened(_flags, lambda x, limit, **_: flagged(bool((np.abs(x) > limit).any()))),
    "ranks": _opened(_ranks, lambda x: ring(np.argsort(by_rank(x), -1))),
    "top-k": _opened(order.top_k, lambda x, k, bits, order: _top_k(x, k, order)),
    "top-k by threshold": _opened(order.by_threshold, _marks),
    "maximum": _opened(order.maximum, lambda x, **_: exact(x.max(-1))),
    "first largest": _opened(order.first_largest, lambda x, **_: exact(hots(np.argmax(x, -1), x.shape[-1]))),
    "argmax": Gate(_argmax, lambda x, **_: exact(hots(np.argmax(x, -1), x.shape[-1]))),
    "shuffle": Gate(_shuffle, _rows_kept),
    "compaction by shuffle": _opened(order.compact_by_shuffle, _compacted),
    "compaction by matrix": _opened(order.compact_by_matrix, _compacted),
    "partition by shuffle": _opened(partition.partition_by_shuffle, _partitioned),
    "partition by matrix": _opened(partition.partition_by_matrix, _partitioned),
    "scan": Gate(order.copy_scan, lambda *xs, **given: exact(order.copied(*xs, **given))),
    "chosen scores": _opened(linear.chosen_scores, _einsum("gji,grc,gitc->grjt")),
    "chosen values": _opened(linear.chosen_values, _einsum("gji,grjt,gitc->grc")),
    "picked scores": _opened(linear.picked_scores, _einsum("gji,grit->grjt")),
    "spread weights": _opened(linear.spread_weights, _einsum("gji,grjt->grit")),
    "picked by rank": _opened(linear.picked_by_rank, _picked_by_rank),
    "zero test by table": _opened(lookup.zero_by_table, lambda x, bits: exact(x == 0)),
    "shift": _opened(softmax.shift_of, _shift_judge),
    **{name: Gate(*both) for name, both in CRYPTEN.items()},
}


# ---- evaluation ------------------------------------------------------------------------------------------------------
def _compare(found: Any, given: dict[str, Any]) -> np.ndarray:
    """Our shares against the vector's, and what they add up to; the opened value in float64."""
    x = found.x if isinstance(found, Shared) else found
    said, size = np.stack([tensor(s) for s in given["shares"]]), given["bits"]
    assert x.shape == said.shape
    assert np.array_equal(reduce(x, size), said), "a share of the result is another one"
    if isinstance(found, Shared):
        assert (found.bits, found.frac) == (size, given["frac"])
    whole = np.bitwise_xor.reduce(said, 0) if given["kind"] == "xor" else reduce(said.sum(0, dtype=U), size)
    assert np.array_equal(whole, tensor(given["value"])), "the opened result is another one"
    return signed(whole, size) / 2.0 ** given["frac"]


def evaluate(case: dict[str, Any]) -> None:
    """A case, by our own dealer and parties; then the opened result against the function. Raises `AssertionError`."""
    gate, w = GATES[case["gate"]], World(case)
    inputs, reals = [], []
    for secret in case["inputs"]:
        x = np.stack([tensor(s) for s in secret["shares"]])
        inputs.append(Shared(x, secret["bits"], secret["frac"]))
        value = tensor(secret["value"])
        assert np.array_equal(reduce(x.sum(0, dtype=U), secret["bits"]), value), "shares do not add up to the input"
        reals.append(signed(value, secret["bits"]) / 2.0 ** secret["frac"])
    given = case["arguments"] | {key: case[key] for key in ("noise_seeds",) if key in case}
    program = gate.program(w, *inputs, **given)
    found = w.run(program) if hasattr(program, "send") else program
    w.finish()
    listed = list(found) if isinstance(found, list | tuple) else [found]
    opened = [_compare(one, said) for one, said in zip(listed, case["outputs"], strict=True)]
    wanted = gate.judge(*reals, **given)
    if callable(wanted):
        wanted(opened)
        return
    wanted = wanted if isinstance(wanted, list) else [wanted]
    for value, result, said in zip(opened, wanted, case["outputs"], strict=True):
        if result is not None:
            result.check(value, said["bits"], said["frac"])
