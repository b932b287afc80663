"""Plants one fault after the other in a copy of the tree and checks that the fast tests notice: a test of the tests.

    python -m tests.tools.planted_faults [--only TEXT] [--list]

Each fault is one replacement in one file, with the tests that must fail. Text that is no longer found (or found twice) is an
error, and so is a named test that fails without a fault, so that this list cannot rot silently. Nothing is changed in the
tree itself. Exit code 1 when a fault survives. Takes about ten minutes on one core; not part of the test suite.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("launch", "models", "mpc", "mpcache", "parties", "protocols", "tests")
TIMEOUT_SECONDS = 240
ALL_SECONDS = 3600  # for all named tests, without a fault


@dataclass(frozen=True)
class Fault:
    """One replacement in a file, and the tests (pytest arguments) of which at least one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


GATES = "tests/protocols/masked/test_gates.py"
SUITE = "tests/protocols/masked/test_suite.py"
RANGES = "tests/protocols/test_ranges.py"
ACTIVATION = "tests/protocols/masked/test_activation.py"
EXPONENTIAL = "tests/protocols/masked/test_exponential.py"
CRYPTEN_RANGES = "tests/protocols/crypten/test_ranges.py"
GATES_OF_MASKED = "tests/launch/measure/test_gates.py::test_gates_of_the_suite_masked"
LIFTED = "tests/protocols/masked/test_lifted.py"
OPENINGS = "tests/protocols/masked/test_uniform_openings.py"
SELECTION = "tests/protocols/masked/test_selection.py"
RANKING = "tests/protocols/masked/test_ranking.py"
SHUFFLE = "tests/protocols/masked/test_shuffle.py"
DPF = "tests/protocols/masked/test_dpf.py"
IDPF = "tests/protocols/masked/test_idpf.py"
ZERO = "tests/protocols/masked/test_zero_test.py"
SHIFT = "tests/protocols/test_softmax_shift.py"
GATHER = "tests/protocols/masked/test_gather.py"
CHOSEN = "tests/protocols/test_selection.py"
UNIFORM = "tests/protocols/test_uniformity.py"
TAPE = "tests/mpc/test_tape.py"
OUTPUTS = "tests/parties/client/test_outputs.py"
BY_HAND = "tests/models/policies/test_selection_by_hand.py"
MERGING = "tests/models/policies/test_merging.py"
IN_STEP = "tests/mpc/test_in_step.py"
TURNS = "tests/mpc/test_turns.py"

FAULTS: tuple[Fault, ...] = (
    # ---- openings, masks, roles
    Fault(
        "one mask element for a whole opening",
        "protocols/masked/context.py",
        'self.tape.random("open", shape, bits)',
        'self.tape.random("open", (1,), bits).expand(shape)',
        (f"{UNIFORM}::test_everything_that_is_opened_in_a_generation_is_uniform",),
    ),
    Fault(
        "an index that is made at the host",
        "protocols/masked/piecewise.py",
        "segment = (torch.arange(size, device=lam_hi.device)",
        "segment = (torch.arange(size)",
        ("tests/protocols/test_device.py::test_gates",),
    ),
    Fault(
        "the mask is not added",
        "protocols/masked/context.py",
        "self._own = self.value.x + self.lam",
        "self._own = self.value.x + 0 * self.lam",
        (f"{GATES}::test_products",),
    ),
    Fault(
        "a bias that a row's spread does not count",
        "protocols/masked/attention.py",
        '(largest("score", bound) if cap is None else 2.0 * cap) + 2.0 * bias',
        '(largest("score", bound) if cap is None else 2.0 * cap) + 0.0 * bias',
        ("tests/protocols/test_biased_scores.py::test_a_bias_joins_scores_as_far_apart_as_declared",),
    ),
    Fault(
        "party roles swapped where a masked value becomes a sharing",
        "protocols/masked/context.py",
        "return Shared((x.m - x.lam) if self.first else -x.lam, x.bits, x.frac)",
        "return Shared((x.m - x.lam) if not self.first else -x.lam, x.bits, x.frac)",
        (f"{GATES}::test_truncation_is_unbiased", f"{GATES}::test_products", f"{SUITE}::test_softmax"),
    ),
    Fault(
        "every party adds a public value",
        "protocols/masked/context.py",
        "return Shared(value if self.first else torch.zeros_like(value), bits, frac)",
        "return Shared(value, bits, frac)",
        (f"{GATES}::test_power", f"{SELECTION}::test_top_k_by_ranks"),
    ),
    Fault(
        "output shares are not made fresh",
        "protocols/masked/output.py",
        "share = ring.reduce(s.x + zero, s.bits)",
        "share = ring.reduce(s.x, s.bits)",
        (f"{SUITE}::test_output_shares_are_fresh",),
    ),
    Fault(
        "generator starts again at every call",
        "mpc/generators.py",
        "written = self._cipher.update_into(",
        'written = Cipher(algorithms.AES(self._key), modes.CTR(b"\\0" * 16)).encryptor().update_into(',
        ("tests/mpc/test_random.py", "tests/mpc/test_generators.py"),
    ),
    # ---- tape
    Fault(
        "a party does not check an entry's header",
        "mpc/tape.py",
        'if header != digest[: HEADER_BYTES - 8] + due.to_bytes(8, "little"):',
        'if header[HEADER_BYTES - 8 :] != due.to_bytes(8, "little"):',
        (TAPE, f"{GATES}::test_a_dealer_with_another_program_is_refused_before_anything_is_opened"),
    ),
    Fault(
        "a party does not check an entry's size",
        "mpc/tape.py",
        'if header != digest[: HEADER_BYTES - 8] + due.to_bytes(8, "little"):',
        "if header[: HEADER_BYTES - 8] != digest[: HEADER_BYTES - 8]:",
        (TAPE,),
    ),
    Fault(
        "the dealer forgets a party's part of a mask",
        "mpc/tape.py",
        "return canonical(self._combined(shape, bits, kind, len(self._prgs)), bits)",
        "return canonical(self._combined(shape, bits, kind, len(self._prgs) - 1), bits)",
        (TAPE,),
    ),
    Fault(
        "a common value does not reach party 0",
        "mpc/tape.py",
        "        for party in range(len(self._prgs)):\n            self._emit(party, payload)",
        "        for party in range(1, len(self._prgs)):\n            self._emit(party, payload)",
        (TAPE,),
    ),
    # ---- truncation and lift
    Fault(
        "truncation into a ring one bit too small",
        "protocols/masked/truncation.py",
        "    bits = x.bits - count\n",
        "    bits = x.bits - count - 1\n",
        (GATES, "tests/launch/measure/test_gates.py::test_gates_of_the_suite_masked"),
    ),
    Fault(
        "lift without its carry",
        "protocols/masked/truncation.py",
        "return top * (1 - ring.shift_right(moved, x.bits - 1, x.bits))",
        "return top * (0 * ring.shift_right(moved, x.bits - 1, x.bits))",
        (f"{GATES}::test_truncate_and_lift_is_off_by_less_than_a_unit",),
    ),
    Fault(
        "a raised ring forgets how often masks go around",
        "protocols/masked/truncation.py",
        "_carry(c, x, moved, bits - kept) + dealt",
        "_carry(c, x, moved, bits - kept)",
        (f"{GATES}::test_a_raised_ring_holds_the_same_value_for_the_bits_it_has_more",),
    ),
    Fault(
        "lift forgets its offset",
        "protocols/masked/truncation.py",
        "out = out + ring.shift_right(moved, count, x.bits) - (offset >> count)",
        "out = out + ring.shift_right(moved, count, x.bits)",
        (f"{GATES}::test_truncate_and_lift_is_off_by_less_than_a_unit",),
    ),
    Fault(
        "what is output is cut by chance",
        "protocols/masked/output.py",
        "await floor(c, found, cut)",
        "c.shared(cut)",
        ("tests/protocols/test_output.py::test_equal_values_are_cut_alike", f"{OUTPUTS}::test_an_attack_is_caught"),
    ),
    Fault(
        "suite crypten: what is output is cut by chance",
        "protocols/crypten/output.py",
        "blinded.truncated(s, m) - to_arithmetic(s, more.reshape(x.shape))",
        "blinded.truncated(s, m) - 0 * to_arithmetic(s, more.reshape(x.shape))",
        ("tests/protocols/test_output.py::test_equal_values_are_cut_alike",),
    ),
    Fault(
        "a sample's noise has another sign than its mask's",
        "protocols/masked/output.py",
        "scores.lam - noise",
        "scores.lam + noise",
        ("tests/protocols/test_output.py::test_a_sample_is_the_argmax_with_the_dealt_noise",),
    ),
    # ---- products
    Fault(
        "sign of the masks' product",
        "protocols/masked/product.py",
        "term - _times(x, w, x.lam, w.times_m)",
        "term + _times(x, w, x.lam, w.times_m)",
        (f"{SUITE}::test_norm_linear_both_ways",),
    ),
    # ---- comparison
    Fault(
        "sign of a bit times a masked value",
        "protocols/masked/comparison.py",
        "return Shared(y.m * bit.x - masked_part, y.bits, y.frac)",
        "return Shared(y.m * bit.x + masked_part, y.bits, y.frac)",
        (f"{GATES}::test_less_than_zero",),
    ),
    Fault(
        "a comparison's top digit ignores the borrow where that makes it negative",
        "protocols/masked/comparison.py",
        "return _bit_at(words, place) ^ _bit_at(words, across)",
        "return _bit_at(words, across)",
        (f"{GATES}::test_less_than_zero",),
    ),
    Fault(
        "a borrow passes a digit that is not equal",
        "protocols/masked/comparison.py",
        '[(k, mono | {f"eq{i}"}) for k, mono in borrow]',
        "[(k, mono) for k, mono in borrow]",
        (f"{GATES}::test_less_than_zero",),
    ),
    # ---- lookups, polynomials, activations
    Fault(
        "a one-hot vector is turned the wrong way",
        "protocols/masked/one_hot.py",
        "    positions = (m_digit[..., None] - torch.arange(size, device=dealt.device)) & (size - 1)\n"
        "    return dealt.gather",
        "    positions = (m_digit[..., None] + torch.arange(size, device=dealt.device)) & (size - 1)\n"
        "    return dealt.gather",
        (f"{GATES}::test_one_hot",),
    ),
    Fault(
        "a point function's control bit on the wrong side",
        "protocols/masked/dpf.py",
        "both[0] ^= (keep ^ 1).astype(np.uint64)",
        "both[0] ^= keep.astype(np.uint64)",
        (f"{DPF}::test_shares_add_up_to_the_point",),
    ),
    Fault(
        "both parties' point functions with the same sign",
        "protocols/masked/dpf.py",
        "    if party:\n        np.negative(out, out=out)",
        "    if party > 1:\n        np.negative(out, out=out)",
        (f"{DPF}::test_shares_add_up_to_the_point",),
    ),
    Fault(
        "an incremental point function's control bit on the wrong side",
        "protocols/masked/idpf.py",
        "np.stack([bits ^ _ONE, bits], 1)",
        "np.stack([bits, bits ^ _ONE], 1)",
        (f"{IDPF}::test_every_point_of_a_small_domain",),
    ),
    Fault(
        "payloads' corrections that do not know whose control bit is set",
        "protocols/masked/idpf.py",
        "(difference + payloads) * (1 - 2 * _controls(found[:, 1])[..., None])",
        "(difference + payloads)",
        (f"{IDPF}::test_every_point_of_a_small_domain", f"{ZERO}::test_every_value_of_a_ring"),
    ),
    Fault(
        "a table's zero test that looks up its neighbour's entry",
        "protocols/masked/zero_test.py",
        "Shared(look_up(dealt, x.m) if c.evaluating",
        "Shared(look_up(dealt, x.m ^ 1) if c.evaluating",
        (f"{ZERO}::test_tables_of_few_bits",),
    ),
    Fault(
        "scores are counted in their own bin alone",
        "protocols/masked/histogram.py",
        "found = rows.sum(ordered).cumsum(-1)[:, : bins - 1]",
        "found = rows.sum(ordered)[:, : bins - 1]",
        (f"{SHIFT}::test_the_shift_is_the_edge_of_the_largest_ones_bin",),
    ),
    Fault(
        "a rank's last entry is taken for what all entries add up to",
        "protocols/masked/ranking.py",
        "rest = factor() - dealt.sum(-1, dtype=torch.int64)",
        "rest = factor()",
        (RANKING,),
    ),
    Fault(
        "clusters are picked from the second rank on",
        "protocols/masked/gather.py",
        "return idpf.Points((ranks.bits,), 0, count - 1, 1 + size, bits)",
        "return idpf.Points((ranks.bits,), 1, count, 1 + size, bits)",
        (f"{GATHER}::test_picks_are_the_rows_of_the_first_ranks",),
    ),
    Fault(
        "a zero test that looks up its neighbour's entry",
        "protocols/masked/zero_test.py",
        "gather(-1, (m & (entries - 1))[:, None])",
        "gather(-1, ((m ^ 1) & (entries - 1))[:, None])",
        (f"{ZERO}::test_every_value_of_a_ring",),
    ),
    Fault(
        "a piece that is read in two octaves",
        "protocols/masked/power.py",
        "    public[:, -1] *= (",
        "    public[:, -1] *= 1 | (",
        (f"{GATES}::test_power", f"{IDPF}::test_a_power_at_both_ends_of_every_octave"),
    ),
    Fault(
        "sign of a mask's low digit in a polynomial",
        "protocols/masked/piecewise.py",
        "minus_rho = -(x.lam & ((1 << low_bits) - 1))",
        "minus_rho = (x.lam & ((1 << low_bits) - 1))",
        (f"{GATES}::test_piecewise_fit_and_evaluation",),
    ),
    Fault(
        "tails begin at half of the curved range",
        "protocols/masked/brackets.py",
        "return (2 * self.half >> self.unit) + 1",
        "return (self.half >> self.unit) + 1",
        (f"{ACTIVATION}::test_brackets",),
    ),
    Fault(
        "brackets and the curve see different borrows",
        "protocols/masked/brackets.py",
        "moved = x.add_public(interval.half << x.frac)",
        "moved = x.add_public((interval.half << x.frac) + (1 << (x.frac - 1)))",
        (f"{ACTIVATION}::test_brackets",),
    ),
    Fault(
        "a position within a segment with the wrong sign",
        "protocols/masked/segments.py",
        "(-rho) ** e * 2.0**bits",
        "rho**e * 2.0**bits",
        (f"{ACTIVATION}::test_all_forms_over_the_whole_range",),
    ),
    Fault(
        "a segment's digit that does not know what borrows from a unit",
        "protocols/masked/curves.py",
        "unit * around + m % unit - lam % unit",
        "unit * around + (m - lam) % unit",
        (f"{ACTIVATION}::test_segments_at_the_edges",),
    ),
    Fault(
        "segments under the opposite of their bit",
        "protocols/masked/lifted.py",
        "first, second = -rho, rho - 1",
        "first, second = rho - 1, -rho",
        (f"{ACTIVATION}::test_segments_at_the_edges",),
    ),
    Fault(
        "a top bit that is not shifted as its factor is",
        "protocols/masked/lifted.py",
        "x.shift + factor.shift, x.w)",
        "x.shift, x.w)",
        (f"{ACTIVATION}::test_segments_at_the_edges",),
    ),
    Fault(
        "small amplitudes whose cosines have too many bits",
        "protocols/masked/waves.py",
        "spared = curves.AMPLITUDE_BITS - DEALT_BITS - period + shift",
        "spared = curves.AMPLITUDE_BITS - DEALT_BITS - period",
        (f"{ACTIVATION}::test_all_forms_over_the_whole_range",),
    ),
    Fault(
        "a predicate's table that is not turned by the mask bits",
        "protocols/masked/opened_bits.py",
        "torch.tensor(found)[u[:, None] ^ u]",
        "torch.tensor(found)[u[:, None] * 0 + u]",
        (f"{ACTIVATION}::test_a_bit_alone_and_its_opposite",),
    ),
    Fault(
        "large values lifted as if they could be as small",
        "protocols/masked/activation.py",
        "x.starting(-INTERVAL[kind].reach << x.frac)",
        "x",
        (f"{ACTIVATION}::test_all_forms_over_the_whole_range",),
    ),
    Fault(
        "the power's thresholds miss the largest",
        "protocols/masked/power.py",
        "return list(range(low + (high - low) % 2, high, 2))",
        "return list(range(low + (high - low) % 2, high - 2, 2))",
        (f"{GATES}::test_power",),
    ),
    # ---- veiled products
    Fault(
        "a product is opened without its veil",
        "protocols/masked/veiled.py",
        "fresh = c.tape.random(op, tuple(shape), bits)",
        "fresh = c.tape.random(op, tuple(shape), bits) * 0",
        ("tests/protocols/test_truncation_functionality.py",),
    ),
    Fault(
        "a veil's mask forgets the product of the masks",
        "protocols/masked/veiled.py",
        "return fresh - f(x.lam, y.lam, bits)",
        "return fresh",
        ("tests/protocols/test_truncation_functionality.py",),
    ),
    Fault(
        "a product with a weight is opened without its veil",
        "protocols/masked/veiled.py",
        "fresh = c.tape.random(op, weighted_shape(x, w), x.bits)",
        "fresh = c.tape.random(op, weighted_shape(x, w), x.bits) * 0",
        ("tests/protocols/test_truncation_functionality.py",),
    ),
    Fault(
        "a sum of known factors is opened without its veil",
        "protocols/masked/veiled.py",
        "return found\n\n    found = lifted.sum_known",
        "return found * 0\n\n    found = lifted.sum_known",
        ("tests/protocols/masked/test_uniform_openings.py",),
    ),
    Fault(
        "shares behind a veil are cut without the half",
        "protocols/masked/veiled.py",
        "own = own + (1 << (count - 1))",
        "own = own + 0",
        ("tests/protocols/test_truncation_functionality.py",),
    ),
    # ---- softmax and norms
    Fault(
        "scores read as they are, not relative to their row",
        "protocols/masked/rows.py",
        "return (whole - whole[:, -1:]).reshape(-1)",
        "return whole.reshape(-1)",
        (f"{SUITE}::test_softmax", f"{RANGES}::test_a_spread_beyond_its_bound_is_flagged_wherever_the_scores_lie"),
    ),
    Fault(
        "a score beyond the far bins is not flagged",
        "protocols/masked/softmax.py",
        "odd = histogram.parity(words & mask)",
        "odd = histogram.parity(words & (mask >> 1))",
        (f"{RANGES}::test_a_far_score_is_flagged_on_both_sides",),
    ),
    Fault(
        "shares cut without what a lost carry takes",
        "protocols/masked/truncation.py",
        "own = x.x + ((1 << count) - 1) if c.first else x.x",
        "own = x.x",
        (f"{SUITE}::test_argmax_and_max_with_ties", f"{RANGES}::test_every_declared_option_works_at_the_default_precision"),
    ),
    # ---- range flags
    Fault(
        "a flag's table good two units too far",
        "protocols/masked/ranges.py",
        "(digit + above + 1) & (size - 1)",
        "(digit + above + 3) & (size - 1)",
        (f"{RANGES}::test_cached_values", f"{RANGES}::test_scores_are_right_wherever_they_are_not_flagged"),
    ),
    Fault(
        "a flag's table a unit too narrow",
        "protocols/masked/ranges.py",
        "(digit + above + 1) & (size - 1)",
        "(digit + above) & (size - 1)",
        (f"{RANGES}::test_no_false_flag_in_many_values_up_to_the_limit",),
    ),
    Fault(
        "flags that leave as they are",
        "protocols/masked/ranges.py",
        "words, self._found = self._whole() ^ zero, {}",
        "words, self._found = self._whole(), {}",
        (f"{RANGES}::test_a_share_of_the_flags_is_uniform_and_a_set_flag_too",),
    ),
    Fault(
        "flags of equal words for all values",
        "protocols/masked/ranges.py",
        "self._coefficients.ring(tuple(bits.shape), 64, bits.device) & -bits",
        "-bits",
        (f"{RANGES}::test_a_share_of_the_flags_is_uniform_and_a_set_flag_too",),
    ),
    Fault(
        "suite crypten: limits of what is flagged twice as far",
        "protocols/crypten/comparison.py",
        "SUM_BITS, LEAST = 32, 3403",
        "SUM_BITS, LEAST = 32, 4 * 3403",
        (f"{CRYPTEN_RANGES}::test_beyond_a_limit_is_flagged_for_certain",),
    ),
    Fault(
        "suite crypten: limits of what is flagged half as far",
        "protocols/crypten/comparison.py",
        "SUM_BITS, LEAST = 32, 3403",
        "SUM_BITS, LEAST = 32, 3403 // 4",
        (f"{CRYPTEN_RANGES}::test_every_element_within_range_is_not_flagged",),
    ),
    Fault(
        "suite crypten: flags that leave as they are",
        "protocols/crypten/ranges.py",
        'out = s.zero_sharing(shape, "xor")',
        "out = torch.zeros(shape, dtype=torch.int64)",
        (f"{CRYPTEN_RANGES}::test_a_word_is_random_and_a_share_says_nothing",),
    ),
    Fault(
        "suite crypten: flags of equal words for all values",
        "protocols/crypten/ranges.py",
        "self._prg.ring(bits.shape, 64, s.device) & -bits.to(torch.int64)",
        "-bits.to(torch.int64)",
        (f"{CRYPTEN_RANGES}::test_a_word_is_random_and_a_share_says_nothing",),
    ),
    Fault(
        "suite crypten: a coarse copy of a row that forgets where its mask wraps",
        "protocols/crypten/normalisation.py",
        "((coarse * top - mixed) * wrapped - coarse * high * 2)",
        "(coarse * high * -2)",
        ("tests/protocols/crypten/test_functions.py::test_moments",),
    ),
    Fault(
        "suite crypten: 1 / deviation with too few bits for large rows",
        "protocols/crypten/normalisation.py",
        "INVERSE_BITS = 16",
        "INVERSE_BITS = 6",
        ("tests/protocols/crypten/test_functions.py::test_moments",),
    ),
    Fault(
        "a norm's square in a ring without room",
        "protocols/masked/normalisation.py",
        "h = truncate(c, h, max(0, h.frac + residual + ROOM // 2 + 1 - RING_BITS // 2))",
        "h = h",
        (f"{RANGES}::test_very_wide_rows_are_squared_with_fewer_fraction_bits",),
    ),
    Fault(
        "a lifted factor without its wrap",
        "protocols/masked/lifted.py",
        "w = 1 - ring.shift_right(moved, x.bits - 1, x.bits)",
        "w = torch.ones_like(moved)",
        (f"{LIFTED}::test_product",),
    ),
    Fault(
        "a wide value dealt without the carry of its low words",
        "protocols/masked/wide.py",
        "lambda: whole.high - total.high, bits - RING_BITS",
        "lambda: whole.high, bits - RING_BITS",
        (f"{LIFTED}::test_product",),
    ),
    Fault(
        "a wide opening whose high word has no mask",
        "protocols/masked/wide.py",
        "total = Wide(low[0], high[0])",
        "total = Wide(low[0], 0 * high[0])",
        (f"{OPENINGS}::test_what_is_opened_is_uniform", f"{LIFTED}::test_product"),
    ),
    Fault(
        "a wide cut whose shares both lose a carry",
        "protocols/masked/wide.py",
        "own = own + ((Wide.of(own.low * 0 + 1) << count) + -1)",
        "own = own + 0",
        (f"{LIFTED}::test_product",),
    ),
    Fault(
        "the sign of a one-hot vector is forgotten",
        "protocols/masked/signed_one_hot.py",
        "return 2 * ((word >> (lam_digit & 63)) & 1) - 1",
        "return torch.ones_like(word)",
        ("tests/protocols/masked/test_signed_one_hot.py::test_look_up",),
    ),
    Fault(
        "bits of a one-hot vector that lie in the clear",
        "protocols/masked/signed_one_hot.py",
        'shape, point if c.tape.dealing else None, word_bits, "xor")',
        "shape, point if c.tape.dealing else None, word_bits)",
        ("tests/protocols/masked/test_signed_one_hot.py::test_look_up",),
    ),
    Fault(
        "queries and keys unchecked where they are rotated",
        "protocols/masked/arithmetic.py",
        "rotated.watched = t.watched",
        "rotated.watched = None",
        (f"{RANGES}::test_queries_and_keys_are_checked_where_they_are_rotated",),
    ),
    Fault(
        "a mean with more bits than wide rows leave",
        "protocols/masked/normalisation.py",
        "min(12 + width.bit_length(), RING_BITS - 2 - h.frac - residual - ROOM)",
        "12 + width.bit_length()",
        (f"{RANGES}::test_a_norm_up_to_four_bounds_is_flagged_for_certain",),
    ),
    Fault(
        "a product before the norm divides it that is not looked at",
        "protocols/masked/normalisation.py",
        "convert.ranges.check(kind, found, b.product)",
        "pass",
        (f"{RANGES}::test_outputs_of_a_row_at_its_bound_are_flagged_up_to_their_certain_size",),
    ),
    Fault(
        "flags said to be certain where a ring is around",
        "protocols/ranges.py",
        "SURE = 3.4",
        "SURE = 4.5",
        (f"{RANGES}::test_what_no_prompt_can_exceed_is_flagged_for_certain_before_a_norm_divides_it",),
    ),
    Fault(
        "activation outputs lifted as if they were signed",
        "protocols/masked/conversion.py",
        "offset = 1 << found.frac if x.positive else None",
        "offset = None",
        (f"{RANGES}::test_activations_are_right_wherever_they_are_not_flagged",),
    ),
    Fault(
        "softmax's shift counts bins of half the width",
        "protocols/masked/softmax.py",
        "y.frac + BIN_BITS",
        "y.frac + BIN_BITS - 1",
        (f"{SUITE}::test_softmax",),
    ),
    Fault(
        "softmax's shift without its bias",
        "protocols/masked/softmax.py",
        "map(lambda t: -t.sum(-1)), spread.reach + 1",
        "map(lambda t: -t.sum(-1)), spread.reach // 2",
        (f"{SUITE}::test_softmax",),
    ),
    Fault(
        "a dealt power whose sign stays",
        "protocols/masked/exponential.py",
        "return torch.where(bit == 1, value, -value)",
        "return value",
        (f"{EXPONENTIAL}::test_exponentials",),
    ),
    Fault(
        "exponentials of the next digit",
        "protocols/masked/exponential.py",
        "turned(shares[0], (m_hi + 1)",
        "turned(shares[0], (m_hi + 2)",
        (f"{EXPONENTIAL}::test_exponentials",),
    ),
    Fault(
        "a dealt power that is shared modulo 2^L",
        "mpc/cyclic.py",
        "return _less(found, [torch.zeros_like(borrow)] * len(x), borrow)[0]",
        "return found",
        ("tests/mpc/test_cyclic.py::test_differences_around_the_circle", f"{EXPONENTIAL}::test_exponentials"),
    ),
    Fault(
        "a dealt power that the last party gets whole",
        "protocols/masked/exponential.py",
        "            whole = subtract(whole, other)",
        "            subtract(whole, other)",
        (f"{EXPONENTIAL}::test_shares_of_dealt_powers_are_uniform",),
    ),
    Fault(
        "exponents in units of ln 2",
        "protocols/masked/exponential.py",
        "Shared(s.x * UNITS, s.bits",
        "Shared(s.x * 8192, s.bits",
        (f"{SUITE}::test_attention_of_capped_scores",),
    ),
    Fault(
        "masked exponents in units of ln 2",
        "protocols/masked/exponential.py",
        "scaled = s.map(lambda t: t * UNITS)",
        "scaled = s.map(lambda t: t * 8192)",
        (f"{SUITE}::test_softmax",),
    ),
    Fault(
        "a zero test that looks at all digits but one",
        "protocols/masked/zero_words.py",
        "first = -(-self.bits // (DIGIT[self.way] * self.each))",
        "first = max(1, self.bits // (DIGIT[self.way] * self.each))",
        (f"{EXPONENTIAL}::test_zero_words",),
    ),
    Fault(
        "hashes with one word for four places",
        "protocols/masked/histogram.py",
        "return (picks << torch.arange(GROUP)).sum(-1)",
        "return (picks[..., :1] * 15).sum(-1)",
        (f"{EXPONENTIAL}::test_hashes_are_zero_where_no_score_lies",),
    ),
    Fault(
        "a norm without its epsilon",
        "protocols/masked/normalisation.py",
        "epsilon = max(1, round(norm.epsilon * width * 2.0**squares.frac))",
        "epsilon = 1",
        (f"{SUITE}::test_norm_with_outliers_and_with_a_tiny_deviation",),
    ),
    # ---- selection
    Fault(
        "ties go to the later position",
        "protocols/masked/top_k.py",
        "pairs = x.map(lambda t: t[..., i.to(t.device)] - t[..., j.to(t.device)])",
        "pairs = x.map(lambda t: t[..., i.to(t.device)] - t[..., j.to(t.device)]).add_public(-1)",
        (f"{SELECTION}::test_top_k_by_ranks",),
    ),
    Fault(
        "padding that wins against negative values",
        "protocols/masked/ranking.py",
        "more = torch.full((*t.shape[:-1], missing), value,",
        "more = torch.full((*t.shape[:-1], missing), 0,",
        (f"{RANKING}::test_groups_of_any_size",),
    ),
    Fault(
        "the place of a group's last member for its first",
        "protocols/masked/ranking.py",
        "(ones * (steps[:-1] - steps[-1])).sum(-1)",
        "(ones * steps[:-1]).sum(-1)",
        (f"{RANKING}::test_groups_of_any_size",),
    ),
    Fault(
        "a ring of ranked values without room for both ends",
        "protocols/masked/selection.py",
        "frac + magnitude + 3",
        "frac + magnitude + 2",
        ("tests/launch/measure/test_gates.py::test_gates_of_the_suite_masked",),
    ),
    Fault(
        "a threshold that is reached by one value too few",
        "protocols/masked/threshold.py",
        "& (size - 1)) >= k).to(torch.int64)",
        "& (size - 1)) >= k - 1).to(torch.int64)",
        (f"{SELECTION}::test_top_k_by_threshold",),
    ),
    Fault(
        "sign of the three-factor product",
        "protocols/masked/gather.py",
        "out = out + _dots(q.m, ek, bits) - eqk",
        "out = out + _dots(q.m, ek, bits) + eqk",
        (f"{CHOSEN}::test_attention_to_chosen_clusters",),
    ),
    Fault(
        "a shuffle pass without the party's own mask",
        "protocols/masked/shuffle.py",
        "z = [ring.reduce(take_rows(t, orders[0]) + r[0], b) for t, r, b in zip(z, masks, bits, strict=True)]",
        "z = [ring.reduce(take_rows(t, orders[0]), b) for t, r, b in zip(z, masks, bits, strict=True)]",
        (f"{SHUFFLE}::test_shuffle_moves_whole_rows_of_all_tensors",),
    ),
    Fault(
        "permutations from two bits of their keys",
        "protocols/masked/shuffle.py",
        "np.lexsort(tuple(keys.numpy()), axis=-1)",
        "np.lexsort(tuple(keys.numpy() & 3), axis=-1)",
        (f"{SHUFFLE}::test_permutations_have_no_bias",),
    ),
    Fault(
        "compaction does not check how many rows are marked",
        "protocols/masked/compaction.py",
        "if not bool((marks.sum(-1) == k).all()):",
        "if False:",
        (f"{SHUFFLE}::test_a_broken_indicator_is_refused",),
    ),
    # ---- cache policies
    Fault(
        "eviction decides about the sinks as well",
        "models/policies/axes/keep.py",
        "return Kept(self.sinks, cached - recent, ",
        "return Kept(0, cached - recent - self.sinks, ",
        (f"{BY_HAND}::test_two_levels_with_sinks_window_and_a_growing_cluster",),
    ),
    Fault(
        "each head chooses, but all take the first one's choice",
        "models/policies/selecting.py",
        "    none = (bias[:, :, :1] + float(PENALTY)) - marks[:, :, :1] * PENALTY  # secret zeros\n",
        "    bias = bias[:, :1].expand(groups, heads, stop - start)\n"
        "    none = (bias[:, :, :1] + float(PENALTY)) - marks[:, :, :1] * PENALTY  # secret zeros\n",
        ("tests/models/policies/test_policies_by_hand.py",),
    ),
    Fault(
        "heads that choose each for itself choose by the sum of all",
        "models/policies/clusters.py",
        "return suite.relative(found if per_head else found.sum(1))",
        "return suite.relative(found.sum(1))",
        ("tests/models/policies/test_policies_by_hand.py",),
    ),
    Fault(
        "a stream that is held smaller keeps its epsilon",
        "models/families/standard.py",
        'fields["stream_epsilon"] = epsilon * scale**2',
        'fields["stream_epsilon"] = epsilon',
        ("tests/models/families/test_large_streams.py::test_plaintext",),
    ),
    Fault(
        "feed-forward layers write to a smaller stream what the checkpoint has",
        "models/families/standard.py",
        'STREAM = ("tokens", "positions", "out", "down")',
        'STREAM = ("tokens", "positions", "out")',
        ("tests/models/families/test_large_streams.py::test_plaintext",),
    ),
    Fault(
        "a session gives up the layer that it is in",
        "parties/pages/cache_memory.py",
        "gives = layer is not None and layer in self.may_go(own=True) and",
        "gives = layer is not None and",
        ("tests/parties/pages/test_rows.py",),
    ),
    Fault(
        "the wait of a session that waits for its client after this token is not counted",
        "parties/pages/replacement.py",
        "            found += at.waited  # it will wait before it needs this one\n",
        "            pass\n",
        ("tests/parties/pages/test_rows.py",),
    ),
    Fault(
        "the last layer of a group decides what all of them keep",
        "models/policies/composition.py",
        "suite.with_bound(before + seen.mass, seen.queries * heads + 1)",
        "seen.mass",
        (f"{BY_HAND}::test_layers_that_share_a_choice_keep_the_same_tokens",),
    ),
    Fault(
        "clusters begin at the first token",
        "models/policies/selecting.py",
        "return Layout(size, min(sinks, tokens), candidates,",
        "return Layout(size, 0, candidates,",
        (f"{BY_HAND}::test_two_levels_with_sinks_window_and_a_growing_cluster",),
    ),
    Fault(
        "a key that joins a begun cluster leaves its lowest ones alone",
        "models/policies/clusters.py",
        "extreme(before[0], columns), extreme(before[1], -columns))",
        "extreme(before[0], columns), extreme(before[1], columns))",
        ("tests/models/policies/test_policies.py::test_extremes_kept_up_token_by_token_are_those_of_the_whole_cluster[6]",),
    ),
    Fault(
        "what the prompt leaves over does not begin a cluster",
        "models/policies/levels.py",
        "grown(suite, None, keys[:, stop:], background)",
        "grown(suite, None, keys[:, -1:], background)",
        ("tests/models/policies/test_policies.py::test_extremes_kept_up_token_by_token_are_those_of_the_whole_cluster[7]",),
    ),
    Fault(
        "digits of a product are unsigned",
        "mpc/byte_matmul.py",
        "np.bitwise_xor(rest, offset, out=rest)",
        "np.subtract(rest, offset, out=rest)",
        ("tests/mpc/test_byte_matmul.py::test_any_shape_and_ring",),
    ),
    Fault(
        "digits of a table are unsigned",
        "mpc/bit_sums.py",
        "((tables + offset) ^ offset)",
        "(tables + 0)",
        ("tests/mpc/test_bit_sums.py::test_both_ways_add_up_what_is_named",),
    ),
    Fault(
        "the blocks of a deep product overlap",
        "mpc/byte_matmul.py",
        "b[:, start : min(start + size, depth)]",
        "b[:, start : min(start + size + 1, depth)]",
        ("tests/mpc/test_byte_matmul.py::test_the_largest_digits_of_a_deep_product[50257-32]",),
    ),
    Fault(
        "a piece of a matrix is filled with the rows of another",
        "mpc/pieced_matrix.py",
        "words[start - first : stop - first]",
        "words[: stop - start]",
        ("tests/mpc/test_pieced_matrix.py::test_what_is_filled_is_there",),
    ),
    Fault(
        "the last piece of a row is not multiplied",
        "mpc/pieced_matrix.py",
        "for piece, part in others:",
        "for piece, part in others[:-1]:",
        ("tests/mpc/test_pieced_matrix.py::test_products_are_exact",),
    ),
    Fault(
        "a dealer does not wait for a processor",
        "launch/cluster/processors.py",
        "        return False",
        "        return True",
        ("tests/launch/cluster/test_processors.py::test_that_one_more_waits_for_one_that_is_done",),
    ),
    Fault(
        "alpha weighs the lowest key",
        "models/policies/clusters.py",
        "suite.scale(high, alpha), suite.scale(low, 1.0 - alpha)",
        "suite.scale(high, 1.0 - alpha), suite.scale(low, alpha)",
        ("tests/models/policies/test_policies_by_hand.py::test_mpcache",),
    ),
    Fault(
        "a layer chooses by its own queries where it should take a choice",
        "models/cache.py",
        "start = layer - (layer - self.apart) % self.layers",
        "start = layer",
        (f"{BY_HAND}::test_a_layer_takes_the_clusters_of_the_layer_before_but_its_own_keys",),
    ),
    Fault(
        "the coarse level keeps everything",
        "models/policies/levels.py",
        "count = max(round(self.coarse_share * above), -(-plan.count // factor))",
        "count = above",
        (f"{BY_HAND}::test_two_levels_with_sinks_window_and_a_growing_cluster",),
    ),
    Fault(
        "tokens go one later than they are due",
        "models/policies/axes/schedule.py",
        "cached >= kept + self.every",
        "cached > kept + self.every",
        ("tests/models/policies/test_policies_by_hand.py::test_lagged_h2o",),
    ),
    Fault(
        "attention that padding gets is not checked",
        "models/encoder.py",
        "h, _ = await suite.together(out, suite.unattended(mass))",
        "h = await out",
        ("tests/models/test_encoders.py::test_padding_that_would_be_attended_to_is_flagged",),
    ),
    Fault(
        "votes are pooled over one neighbour too few",
        "models/policies/axes/scorers.py",
        "pooled(suite, seen.mass[:, kept.start : kept.stop], half, half)",
        "pooled(suite, seen.mass[:, kept.start : kept.stop], half, half - 1)",
        (f"{BY_HAND}::test_snapkv_votes_are_pooled_over_neighbours",),
    ),
    Fault(
        "variances are not of the number of queries",
        "models/policies/axes/moments.py",
        "(squares * count - square) * self.gamma",
        "(squares - square) * self.gamma",
        ("tests/models/policies/test_scorers.py::test_the_tokens_that_stay_are_the_formulas[cake]",),
    ),
    Fault(
        "a token's longest gap is its shortest",
        "models/policies/axes/recurrence.py",
        "suite.less_than_zero(-over, 0)",
        "suite.less_than_zero(over, 0)",
        ("tests/models/policies/test_scorers.py::test_ages_and_gaps_are_those_of_one_query_after_the_other[plain-1-400]",),
    ),
    Fault(
        "votes of another head of the group",
        "protocols/observed.py",
        "(of % group * tokens[0])[:, None] + last",
        "((of + 1) % group * tokens[0])[:, None] + last",
        ("tests/models/test_decoder.py::test_attention_of_single_heads",),
    ),
    Fault(
        "what is left of a budget goes to one layer too many",
        "models/policies/axes/budget.py",
        "(turn < over % len(below))",
        "(turn <= over % len(below))",
        ("tests/models/policies/test_budgets.py::test_layers_get_what_the_authors_rule_gives",),
    ),
    # ---- token indices, weights, what is stored
    Fault(
        "indices beyond the vocabulary give no row",
        "protocols/masked/tokens.py",
        "    inside[..., : rows.shape[-1] - size] += rows[..., size:]",
        "    pass",
        ("tests/protocols/test_tokens.py",),
    ),
    Fault(
        "rows of tokens are opened without a mask",
        "protocols/masked/tokens.py",
        'lam = c.tape.random("open", tuple(rows.shape), bits)',
        'lam = c.tape.random("open", tuple(rows.shape), bits) * 0',
        (f"{UNIFORM}::test_everything_that_is_opened_in_a_generation_is_uniform",),
    ),
    Fault(
        "bits of rows of tokens are opened without a mask",
        "protocols/masked/tokens.py",
        "masked.append(own[-1] ^ _packed_bits(rho))",
        "masked.append(own[-1])",
        (f"{UNIFORM}::test_so_is_what_rows_of_tokens_open",),
    ),
    Fault(
        "whether a row's bit was opened as 0 is opened without a mask",
        "protocols/masked/tokens.py",
        "BitOpening(tau ^ rho if c.evaluating else tau)",
        "BitOpening(tau)",
        ("tests/protocols/test_tokens.py",),
    ),
    Fault(
        "a row of the token table keeps the sign of its opened bit",
        "protocols/masked/tokens.py",
        "taus.append(_parities(own & ~opened))",
        "taus.append(_parities(own & opened))",
        ("tests/protocols/test_tokens.py",),
    ),
    Fault(
        "the last rows of a large factor are left out",
        "mpc/ring.py",
        "for start in range(0, depth, step)]",
        "for start in range(0, depth - step, step)]",
        ("tests/mpc/test_ring.py",),
    ),
    Fault(
        "an emptied record of a storing is written anew",
        "parties/party/store.py",
        "if not isinstance(known, dict) or (file.exists() and not known):",
        "if not isinstance(known, dict):",
        ("tests/parties/party/test_store.py",),
    ),
    Fault(
        "a channel whose key was revoked is lent",
        "parties/transport/channel_pool.py",
        "if pooled is not None and key_of(pooled.channel) in identity.revoked:",
        "if False:",
        ("tests/parties/identity/test_trust.py",),
    ),
    # ---- model and wire
    Fault(
        "a query does not see its own token",
        "models/masks.py",
        "mask = key <= query",
        "mask = (key < query) | (key == 0)",
        ("tests/models/test_decoder.py",),
    ),
    Fault(
        "a query sees the next token",
        "models/masks.py",
        "mask = key <= query",
        "mask = key <= query + 1",
        ("tests/models/test_decoder.py",),
    ),
    Fault(
        "a message's size is not checked",
        "mpc/channel.py",
        "if len(payload) != size:",
        "if False:",
        ("tests/mpc/test_channel.py",),
    ),
    # ---- at the client
    Fault(
        "a flagged output is taken for an answer",
        "parties/client/conversation.py",
        "        if not flags[0]:\n            return ()",
        "        return ()",
        ("tests/parties/test_range_findings.py::test_generation_ends_before_the_token",),
    ),
    Fault(
        "the parties are told of a range finding by another message",
        "parties/client/session.py",
        "self._send(stream, wire.ClientMessage(finish=wire.Finish()))",
        "self._send(stream, wire.ClientMessage(finish=wire.Finish() if reason == 'stop' else None))",
        ("tests/parties/test_range_findings.py::test_parties_see_what_they_see_at_a_stop_token",),
    ),
    Fault(
        "the client stops early although the length is fixed",
        "parties/client/session.py",
        "        if self.request.params.fixed_length:\n            return\n",
        "",
        (f"{OUTPUTS}::test_with_a_fixed_length_parties_see_nothing_of_the_answer",),
    ),
    Fault(
        "a choice is sent only after the caller has seen the token",
        "parties/client/session.py",
        "early = self._answered or self.request.params.fixed_length",
        "early = self._answered",
        (f"{OUTPUTS}::test_with_a_fixed_length_a_choice_is_sent_before_the_caller_sees_it",),
    ),
    Fault(
        "a client sends what it likes behind its prompt",
        "parties/party/client_endpoint.py",
        'asks = decoding == "logits" or self._manifest.draft > 0',
        "asks = True",
        (f"{OUTPUTS}::test_an_attack_is_caught",),
    ),
    # ---- drafted tokens
    Fault(
        "a wrong guess stays",
        "models/drafting.py",
        "enumerate(pairs, 1) if guess != choice), len(rows))",
        "enumerate(pairs, 1) if guess == -1), len(rows))",
        ("tests/models/test_drafting.py",),
    ),
    Fault(
        "a drafted row sees the rows behind it",
        "models/cache.py",
        "None if mask is None else mask.repeat(cache.group, 1)",
        "None",
        ("tests/models/test_drafting.py::test_families",),
    ),
    Fault(
        "rows that were dropped stay in the cache",
        "models/cache.py",
        "entry.length - self.drafted + rows",
        "entry.length",
        ("tests/models/test_drafting.py::test_families",),
    ),
    Fault(
        "the dealer takes the number of one party for that of all",
        "parties/dealer/dealer.py",
        "if len(set(said.values())) != 1:",
        "if False:",
        ("tests/parties/test_drafting.py::test_parties_that_are_told_different_numbers_end_the_session",),
    ),
    # ---- calibration
    Fault(
        "rotary pairs balanced apart",
        "models/balancing.py",
        "queries, keys = (_pairs(x) for x in (queries, keys))",
        "pass",
        ("tests/models/test_balancing.py",),
    ),
    Fault(
        "spread of scores over masked positions too",
        "models/calibration/extremes.py",
        "seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)",
        "seen = torch.ones_like(scores, dtype=torch.bool)",
        ("tests/models/calibration/test_calibration.py::test_extremes_are_those_of_transformers",),
    ),
    Fault(
        "a calibration believed by its name alone",
        "models/calibration/record.py",
        "if model_digest(directory) != record.model_digest:",
        "if False:",
        ("tests/models/calibration/test_calibration.py::test_the_file_is_found_as_long_as_it_fits",),
    ),
    Fault(
        "the owner's bounds go over what the caller says",
        "protocols/registry.py",
        "{**bounds, **self.options}",
        "{**self.options, **bounds}",
        ("tests/parties/wire/test_model_ranges.py::test_the_owners_bounds_are_options_of_every_session",),
    ),
    # ---- cache systems: merging, learned scores, channels, scans
    Fault(
        "a run ends before a mark that is its own",
        "models/policies/axes/merge.py",
        "ends = left[:, :-1] - left[:, 1:] + marks[:, 1:]",
        "ends = left[:, :-1] - left[:, 1:] + marks[:, :-1]",
        (f"{MERGING}::test_elastic_averages_into_the_nearest_anchor",),
    ),
    Fault(
        "what is below the threshold is merged, too",
        "models/policies/axes/similar.py",
        "weights = await suite.select(passed.expand(*near.shape), near)",
        "weights = near",
        (f"{MERGING}::test_d2o_merges_into_the_most_similar",),
    ),
    Fault(
        "runs of any length",
        "models/policies/axes/runs.py",
        "free[longest - 1 :: longest] = 0",
        "free[longest::longest] = 0",
        (f"{MERGING}::test_kvmerger_merges_runs_of_similar_neighbours",),
    ),
    Fault(
        "of equal tokens of a run the later is the pivot",
        "models/policies/axes/kernel.py",
        "less = suite.with_bound(received[..., first] - received[..., second], 2 * event.scores.bound)",
        "less = suite.with_bound(received[..., first] - received[..., second] - 2.0**-9, 2 * event.scores.bound)",
        (f"{MERGING}::test_kvmerger_merges_runs_of_similar_neighbours[gaussian-gaussian]",),
    ),
    Fault(
        "a copied value goes over one that is there",
        "protocols/masked/scan.py",
        "free = opened.map(lambda t: -t[:1]).add_public(1).with_frac(0)",
        "free = opened.map(lambda t: 0 * t[:1]).add_public(1).with_frac(0)",
        ("tests/protocols/test_merging.py::test_a_scan_copies_the_last_marked_value",),
    ),
    Fault(
        "learned scores beyond what their ranking holds",
        "models/policies/axes/lasting.py",
        'suite.mask_for_cache(found, "activation", LIMIT)',
        "suite.mask_for_cache(found)",
        ("tests/models/policies/test_lasting_scores.py::test_scores_beyond_their_bound_are_flagged",),
    ),
    Fault(
        "the last batch's tokens are shielded by nothing",
        "models/policies/axes/keep.py",
        "min(self.stabilisers, kept // 2) if within else 0)",
        "0)",
        ("tests/models/policies/test_locret.py::test_each_head_keeps_what_its_scores_say",),
    ),
    Fault(
        "channels by their queries alone",
        "protocols/masked/held.py",
        "product.multiply(convert.context, a, b), bound + 1)",
        "product.multiply(convert.context, a, a), bound + 1)",
        ("tests/models/policies/test_think.py::test_every_suite_holds_the_same_channels",),
    ),
    Fault(
        "what was demoted before is gone",
        "models/policies/axes/codecs.py",
        "k, v = suite.concat([before.k, k], 1), suite.concat([before.v, v], 1)",
        "before = Segment(k, v)",
        ("tests/models/policies/test_mikv.py::test_rows_are_demoted_while_decoding",),
    ),
    Fault(
        "attention of demoted tokens counts as that of exact ones",
        "models/policies/composition.py",
        "mass[:, mass.shape[1] - entry.length :] if entry.held else mass",
        "mass[:, : entry.length] if entry.held else mass",
        ("tests/models/policies/test_mikv.py::test_rows_are_demoted_while_decoding",),
    ),
    Fault(
        "keys are turned back as if they were the first ones",
        "models/policies/axes/codecs.py",
        "0 if before is None else before.length, count)",
        "0, count)",
        ("tests/models/policies/test_cskv.py::test_rows_that_left_the_window_are_of_low_rank",),
    ),
    Fault(
        "factors say most of rows, whatever reads them",
        "launch/fit/low_rank.py",
        "torch.linalg.eigh(root @ moment @ root)",
        "torch.linalg.eigh(moment)",
        ("tests/launch/test_low_rank_fit.py::test_factors_lose_least_of_what_is_read",),
    ),
    # ---- encoder-decoders, sessions in step, the gateway's logits
    Fault(
        "a distance at the edge of a bucket is in the one before",
        "models/prompt_encoder.py",
        "torch.tensor(starts), right=True) - 1",
        "torch.tensor(starts), right=False) - 1",
        ("tests/models/test_encoder_decoders.py::test_buckets_are_those_of_transformers",),
    ),
    Fault(
        "a number of a session in step is given twice",
        "mpc/in_step.py",
        "            if number in self._numbers:",
        "            if number in set():",
        (f"{IN_STEP}::test_a_number_is_given_to_one_session_alone",),
    ),
    Fault(
        "a session alone decodes without taking turns",
        "parties/party/session.py",
        "        if member is None:\n            self.endpoint.between = partial(SESSIONS.take, self)",
        "        if member is not None:\n            self.endpoint.between = partial(SESSIONS.take, self)",
        ("tests/parties/test_sessions.py::test_a_session_alone_takes_turns_from_its_second_token_on",),
    ),
    Fault(
        "a forked process waits for threads of gRPC that it does not have",
        "parties/transport/connection.py",
        "    elif _began[0] != os.getpid():",
        "    elif False:",
        ("tests/parties/transport/test_forks.py::test_the_process_that_began_is_the_one_that_goes_on",),
    ),
    Fault(
        "a thread keeps its turn while it waits",
        "mpc/turns.py",
        "    leave()\n    turns.give(owner)\n    try:\n        yield",
        "    try:\n        yield",
        (f"{TURNS}::test_others_compute_while_one_waits",),
    ),
    Fault(
        "sessions in step keep the process's turn while they wait for a peer",
        "mpc/in_step.py",
        "            SESSIONS.give(self)\n",
        "",
        (f"{TURNS}::test_a_group_has_one_turn_of_the_process_between_its_sessions",),
    ),
    Fault(
        "a section of another exchange is taken",
        "mpc/in_step.py",
        "if number != self.posted.number or len(payload) != size:",
        "if len(payload) != size:",
        (f"{IN_STEP}::test_a_section_of_another_size_or_exchange_ends_its_session_alone",),
    ),
    Fault(
        "a presence is counted as often as a token stands there",
        "launch/serve/gateway/logits.py",
        "self.presence * (counts > 0)",
        "self.presence * counts",
        ("tests/launch/serve/test_gateway_choices.py::test_adjustment",),
    ),
    Fault(
        "an answer may end before its format does",
        "launch/serve/gateway/formats.py",
        "allowed[ends] = bool(self._matcher.is_accepting())",
        "allowed[ends] = True",
        (
            "tests/launch/serve/test_formats.py::test_an_end_is_allowed_where_the_answer_is_whole_alone",
            "tests/launch/serve/test_formats.py::test_every_whole_answer_fits",
        ),
    ),
    Fault(
        "a schema's keyword is left out",
        "launch/serve/gateway/formats.py",
        '"lenient": False}',
        '"lenient": True}',
        ("tests/launch/serve/test_formats.py::test_schemas_that_cannot_be_kept",),
    ),
    Fault(
        "a request waits for its turn as for a role that is gone",
        "launch/serve/gateway/patience.py",
        "            self._since.clear()",
        "            pass",
        ("tests/launch/serve/test_patience.py::test_what_patience_hears",),
    ),
    Fault(
        "a request is shown the numbers of the newest one",
        "launch/serve/gateway/live.py",
        'if id in ("", name, given):',
        "if True:",
        ("tests/launch/serve/test_page.py::test_requests_at_once_are_not_mixed",),
    ),
    Fault(
        "sessions that fill the link together are let in",
        "parties/server/admission.py",
        "sent = room.sent is None or sum(one.sent for one in asked) <= room.sent",
        "sent = True",
        ("tests/parties/server/test_admission.py::test_a_session_waits_for_its_share_of_the_link",),
    ),
    Fault(
        "rows that the last token has passed stay in memory",
        "parties/pages/replacement.py",
        "if at.last and layer <= at.layer:",
        "if at.last and layer < 0:",
        ("tests/parties/pages/test_rows.py::test_nothing_is_needed_behind_the_last_token",),
    ),
    Fault(
        "a lost index of pages is taken for a new one",
        "parties/pages/page_store.py",
        "            self._check_there()\n",
        "",
        ("tests/parties/pages/test_page_store.py",),
    ),
    Fault(
        "forms of gates are chosen for the usual network whatever is named",
        "protocols/masked/forms.py",
        "return Network.parse(prefer) or USUAL_NETWORK",
        "return USUAL_NETWORK",
        ("tests/launch/predict/test_estimate.py::test_a_token_of_gpt2",),
    ),
    Fault(
        "what is dealt before is waited for when forms of gates are chosen",
        "protocols/masked/forms.py",
        "return online if network.dealt_before else online +",
        "return online +",
        ("tests/launch/predict/test_preferences.py::test_a_prompt_for_which_everything_is_dealt_before",),
    ),
    Fault(
        "a long one-hot vector is turned in its first piece alone",
        "protocols/masked/one_hot.py",
        "turned[: place + 1] = row[place::-1]\n        turned[place + 1 :] = row[:place:-1]",
        "turned[: place + 1] = row[place::-1]\n        turned[place + 1 :] = row[place + 1 :]",
        (f"{GATES}::test_rotate",),
    ),
    Fault(
        "digits that a session turns are not known for those of another",
        "mpc/joint_products.py",
        "at = (id(b.memory), b.start) if isinstance(b, DigitMatrix) else b.data_ptr()",
        "at = id(b) if isinstance(b, DigitMatrix) else b.data_ptr()",
        ("tests/mpc/test_joint_products.py",),
    ),
    Fault(
        "peers are looked for behind a proxy",
        "parties/transport/connection.py",
        '("grpc.enable_http_proxy", 0)',
        '("grpc.enable_http_proxy", 1)',
        ("tests/parties/transport/test_channel_pool.py::test_proxies_are_for_the_web",),
    ),
)


class Stale(Exception):
    """A fault's old text is not in its file exactly once."""


def copy_tree(to: Path) -> None:
    """What tests need, without caches."""
    for name in COPIED:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for weights in (ROOT / "models").rglob("*.safetensors"):
        (to / weights.relative_to(ROOT)).symlink_to(weights)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, to / name)
    (to / "docs").symlink_to(ROOT / "docs")


def check_texts(faults: Sequence[Fault]) -> None:
    """Raise `Stale` unless each fault's old text is in its file exactly once, and the new one is another."""
    for fault in faults:
        found = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if found != 1 or fault.new == fault.old:
            raise Stale(f"'{fault.name}': its old text is in {fault.file} {found} times, not once; bring it up to date")


def run_tests(tree: Path, tests: Sequence[str], seconds: float = TIMEOUT_SECONDS) -> tuple[int, str]:
    """pytest's exit code and last line; -1 when it took too long (a hang is noticed too)."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"took more than {seconds:g} s"
    return done.returncode, (done.stdout.strip().splitlines() or [""])[-1]


def noticed(code: int) -> bool:
    """Whether pytest's exit code says that tests ran and failed (or hung). Anything else but 0 is our own mistake."""
    if code not in (-1, 0, 1):
        raise Stale(f"pytest ended with code {code}: a named test does not exist, or it cannot be collected")
    return code != 0


def main() -> int:
    """Print one line a fault; the number of survivors decides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only faults with this in their name or file")
    parser.add_argument("--list", action="store_true", help="list the faults, run nothing")
    options = parser.parse_args()
    faults = [f for f in FAULTS if options.only in f"{f.name} {f.file}"]
    if not faults:
        parser.error(f"no fault has '{options.only}' in its name or file (--list)")
    check_texts(faults)
    if options.list:
        for fault in faults:
            print(f"{fault.file}: {fault.name}")
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        code, said = run_tests(tree, list(dict.fromkeys(test for fault in faults for test in fault.tests)), ALL_SECONDS)
        if noticed(code):
            print(f"a named test fails without any fault: {said}", file=sys.stderr)
            return 2
        for fault in faults:
            file = tree / fault.file
            right = file.read_text(encoding="utf-8")
            start = time.perf_counter()
            file.write_text(right.replace(fault.old, fault.new), encoding="utf-8")
            try:
                found = noticed(run_tests(tree, fault.tests)[0])
            finally:
                file.write_text(right, encoding="utf-8")
            survivors += not found
            state = "noticed " if found else "SURVIVED"
            print(f"{state} {time.perf_counter() - start:5.1f} s  {fault.file}: {fault.name}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults were noticed")
    return int(survivors > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stale as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
