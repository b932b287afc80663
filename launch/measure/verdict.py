"""What a comparison of shares with plaintext comes to, in one line that a person can act on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from launch.measure.fidelity import STEPS, Measurement, ProbeError
from models.calibration.choice import Excess
from protocols.bounds import RANGE_KINDS, RANGES

ARGMAX_STEP = 2.0**-10
"""Logits closer than this may be taken for equal by an arg-max on shares."""
SMALL_NORM = 2.0**-3
"""A flagged row of the residual stream with a norm below this was too small, not too large: no bound is."""


@dataclass(frozen=True)
class LogitsEffect:
    """Errors of logits. largest: of any token's; relative: against the largest |logit|; gap: of the two most likely tokens
    after the last one, in plaintext."""

    largest: float
    relative: float
    gap: float

    @staticmethod
    def of(reference: Measurement, measured: Measurement) -> LogitsEffect:
        """Return it from two runs."""
        error = (reference.logits - measured.logits).abs().max().item()
        best = torch.topk(reference.logits[-1], 2).values
        return LogitsEffect(error, error / reference.logits.abs().max().item(), float(best[0] - best[1]))

    @property
    def tie(self) -> bool:
        """Return whether errors of this size may exchange the two most likely tokens."""
        return self.gap <= 2 * self.largest + ARGMAX_STEP


@dataclass(frozen=True)
class Verdict:
    """problems: in the order of their weight, each with its remedy where there is one. right: none."""

    problems: tuple[str, ...]
    summary: str

    @property
    def right(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems

    @property
    def line(self) -> str:
        """Return the verdict in one line."""
        if self.right:
            return f"right: {self.summary}"
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"wrong: {self.problems[0]}{more}"


def judge(
    reference: Measurement,
    measured: Measurement,
    rows: list[ProbeError],
    excesses: list[Excess],
    tolerance: float,
    hugging_face: tuple[float, float] | None,
) -> Verdict:
    """tolerance: of a row's error against its norm, and of a logit's against the largest. hugging_face: (largest difference
    of plaintext's logits from transformers', what is accepted)."""
    problems = [excess.text for excess in excesses]
    problems += flagged(measured, reference)
    if hugging_face is not None and not hugging_face[0] <= hugging_face[1]:
        problems.append(
            f"plaintext differs from Hugging Face's logits by {hugging_face[0]:.3g}: the checkpoint is read wrongly"
        )
    effect = LogitsEffect.of(reference, measured)
    first = next((row for row in rows if not row.relative <= tolerance), None)
    if first is not None:
        problems.append(f"{first.step} {first.point} is {first.relative:.2g} of a row's norm off, more than {tolerance:g}")
    if not effect.relative <= tolerance:
        problems.append(
            f"logits are off by {effect.largest:.3g}, {effect.relative:.2g} of the largest, more than {tolerance:g}"
        )
    same = reference.token == measured.token
    if not same and not effect.tie:
        problems.append(
            f"the next token is another one than in plaintext, though logits are {effect.gap:.3g} apart and "
            f"{effect.largest:.2g} off"
        )
    token = "the next token is plaintext's" if same else "the next token differs, a tie within the error"
    worst = max(row.relative for row in rows)
    return Verdict(
        tuple(problems),
        f"{token}, logits within {effect.largest:.2g} ({effect.relative:.1g} of the largest), every layer within "
        f"{worst:.1g} of its row",
    )


def judge_output(
    reference: Measurement,
    measured: Measurement,
    rows: list[ProbeError],
    excesses: list[Excess],
    asked: tuple[float, str, tuple[float, float] | None],
) -> Verdict:
    """The same for an encoder. asked: tolerance, of a row's error against its norm and of the output against its largest
    number; the output's name; and (largest difference of plaintext's output from transformers', what is accepted)."""
    tolerance, kind, hugging_face = asked
    problems = [excess.text for excess in excesses]
    problems += flagged(measured, reference)
    if hugging_face is not None and not hugging_face[0] <= hugging_face[1]:
        problems.append(
            f"plaintext differs from Hugging Face's {kind} by {hugging_face[0]:.3g}: the checkpoint is read wrongly"
        )
    first = next((row for row in rows if not row.relative <= tolerance), None)
    if first is not None:
        problems.append(f"{first.point} is {first.relative:.2g} of a row's norm off, more than {tolerance:g}")
    wanted, found = reference.points[STEPS[0], kind], measured.points[STEPS[0], kind]
    error = (found - wanted).abs().max().item()
    chosen = ""
    if kind in ("classes", "labels", "words") and wanted.shape[-1] > 1:
        best = wanted.topk(2, -1).values
        clear = best[:, 0] - best[:, 1] > 2 * error
        different = found.argmax(-1) != wanted.argmax(-1)
        if bool((different & clear).any()):
            problems.append(f"{int((different & clear).sum())} of the {kind} are others than in plaintext")
        ties = int((different & ~clear).sum())
        chosen = f", the likeliest of each row plaintext's{f' but for {ties} within the error' if ties else ''}"
    worst = max(row.relative for row in rows)
    return Verdict(
        tuple(problems), f"{kind} within {error:.2g} of plaintext's{chosen}, every layer within {worst:.1g} of its row"
    )


def flagged(measured: Measurement, reference: Measurement | None = None) -> list[str]:
    """Return the range flags in words. reference: tells rows that are too large from rows that are too small."""
    if measured.flags is None:
        return []
    kinds, places = measured.flags.shape
    found: list[str] = []
    for k, n in ((k, n) for k in range(kinds) for n in range(places) if int(measured.flags[k, n]) != 0):
        kind, where = RANGE_KINDS[k], f"layer {n}" if n < places - 1 else "the head"
        text = f"flagged on shares: {RANGES[kind].what} left their range in {where}"
        extremes = None if reference is None else reference.extremes
        smallest = float("inf") if extremes is None else extremes.details["smallest norm"][n]
        if kind == "residual" and smallest < SMALL_NORM:
            found.append(f"{text}: one has norm {smallest:.2g}, too small for the stream's fraction bits")
        else:
            found.append(f"{text}: declare more with --suite-option {kind}=...")
    return found
