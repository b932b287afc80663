"""What `mpcache check` does with an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from launch.cli.commands.check_tables import show_points, show_ranges
from launch.terminal.console import err, out, print_json

if TYPE_CHECKING:
    from launch.local.in_process import InProcessSuite
    from launch.measure.encoder_fidelity import CheckedText
    from models.checkpoint import Checkpoint

HF_TOLERANCE = 1e-4
UNGUIDED_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """hugging_face: the folder to compare with, None for no comparison. tolerance: of a row against its norm, and of the
    output against its largest number."""

    hugging_face: Path | None
    tolerance: float
    as_json: bool


def check_encoder(checkpoint: Checkpoint, text: str | None, roles: InProcessSuite, asked: Asked) -> bool:
    """Compare an encoder in plaintext, on shares and, where asked for, in transformers, say what was found, and return
    whether all of it is right. checkpoint: as float64."""
    from launch.measure import encoder_fidelity, fidelity
    from launch.measure.verdict import flagged, judge_output
    from models.calibration.choice import excesses

    checked = _checked(checkpoint, text)
    spec, count = roles.spec, len(checked.text.ids)
    with err.status("") as status:

        def shown(what: str) -> Callable[[int, int], None]:
            return lambda done, total: status.update(f"{count} tokens, {what}: layer {done} of {total}")

        status.update(f"{count} tokens, plaintext")
        reference = encoder_fidelity.plaintext(checkpoint, checked)
        difference = None
        if asked.hugging_face is not None:
            status.update(f"{count} tokens, Hugging Face")
            theirs = encoder_fidelity.hugging_face_output(asked.hugging_face, checked)
            ours = checked.text.result(reference.points[fidelity.STEPS[0], checked.kind], checked.kind)
            difference = ((theirs - ours).abs().max().item(), HF_TOLERANCE)
        work = shown(f"suite {spec.name}, {roles.parties} parties")
        measured = encoder_fidelity.on_shares(checkpoint, checked, roles, work)
    assert reference.extremes is not None
    over = excesses(spec.name, spec.options, reference.extremes)
    rows = fidelity.compare(reference, measured)
    verdict = judge_output(reference, measured, rows, over, (asked.tolerance, checked.kind, difference))
    if asked.as_json:
        print_json(
            {
                "ok": verdict.right,
                "verdict": verdict.line,
                "problems": list(verdict.problems),
                "suite": spec.name,
                "options": dict(spec.options),
                "parties": roles.parties,
                "tokens": count,
                "padded": checked.plan.prompt_tokens,
                "output": checked.kind,
                "tolerance": asked.tolerance,
                "hugging_face_max_error": None if difference is None else difference[0],
                "flags": None if measured.flags is None else flagged(measured, reference),
                "excesses": [asdict(excess) for excess in over],
                "extremes": reference.extremes.kinds,
                "points": [asdict(row) for row in rows],
            }
        )
        return verdict.right
    show_points(rows, asked.tolerance)
    show_ranges(spec, reference.extremes, over)
    if difference is not None:
        out.print(f"plaintext against Hugging Face's {checked.kind}: largest difference {difference[0]:.2g}")
    for problem in verdict.problems[1:]:
        out.print(Text(f"also: {problem}", style="red"), soft_wrap=True)
    out.print(Text(verdict.line, style="bold green" if verdict.right else "bold red"), soft_wrap=True)
    return verdict.right


def _checked(checkpoint: Checkpoint, text: str | None) -> CheckedText:
    """Return the text's tokens as the tokenizer gives them; without a text, tokens spread over the vocabulary."""
    from launch.measure.encoder_fidelity import CheckedText

    a = checkpoint.encoder
    if text is not None:
        encoded = checkpoint.tokenizer.encode_pair(text)
        return CheckedText.of(checkpoint, encoded.ids, encoded.types if a.types > 1 else ())
    spread = [(7919 * n + 13) % a.vocabulary for n in range(min(UNGUIDED_TOKENS, a.positions))]
    return CheckedText.of(checkpoint, [a.pad + 1 if token == a.pad else token for token in spread])
