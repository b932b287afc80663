"""`mpcache check`: would a session be right, and if not, why and what to declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from launch.cli.commands.check_tables import show_points, show_ranges
from launch.cli.commands.encoder_check import Asked, check_encoder
from launch.cli.options import (
    DEFAULT_SUITE,
    DeviceOption,
    JsonOption,
    ModelOption,
    PartiesOption,
    SuiteOption,
    SuiteOptionsOption,
    read_prompt,
    suite_options,
)
from launch.local.checks import check_device, check_suite
from launch.terminal.console import err, out, print_json

if TYPE_CHECKING:
    from launch.local.in_process import InProcessSuite
    from launch.measure.fidelity import Measurement, ProbeError
    from launch.measure.verdict import LogitsEffect, Verdict
    from models.calibration.choice import Excess
    from models.calibration.extremes import Extremes
    from models.checkpoint import Checkpoint

HF_TOLERANCE = 1e-4
UNGUIDED_TOKENS = 32

PromptOption = Annotated[str | None, typer.Option("--prompt", help="Text to check with; by default 32 fixed tokens.")]
PromptFileOption = Annotated[Path | None, typer.Option("--prompt-file", help="File with it; - for standard input.")]
ToleranceOption = Annotated[
    float,
    typer.Option("--tolerance", min=0, help="Largest error that is accepted, of a row against its norm and of logits."),
]
HuggingFaceOption = Annotated[
    bool, typer.Option(help="Compare plaintext with transformers too, which holds the whole model in float64.")
]


def run(
    model: ModelOption,
    prompt: PromptOption = None,
    prompt_file: PromptFileOption = None,
    suite: SuiteOption = DEFAULT_SUITE,
    parties: PartiesOption = 2,
    tolerance: ToleranceOption = 0.01,
    device: DeviceOption = "cpu",
    suite_option: SuiteOptionsOption = None,
    hugging_face: HuggingFaceOption = True,
    as_json: JsonOption = False,
) -> None:
    """Compare plaintext (float64) with shares at every layer, values with bounds, and plaintext with Hugging Face's logits.

    Says in one line whether a session would be right, and if not, which option would make it so. Weights are there one layer
    at a time. Exit code 1 when something is wrong. Bounds are those of the checkpoint's calibration, then --suite-option.
    Of an encoder the output that it was trained for is compared, of a text padded as sessions pad it.

    INSECURE for real data by nature: all parties run in this one process, which holds every share and puts intermediate
    values together. Use it with text that is not secret.
    """
    import torch

    from launch.checkpoints.calibrating import calibration_for
    from launch.local.in_process import InProcessSuite
    from launch.measure.verdict import LogitsEffect, judge
    from models.calibration.choice import excesses
    from models.checkpoint import load_checkpoint
    from models.encoder_architecture import EncoderArchitecture
    from protocols.registry import SuiteSpec

    check_device(device)
    check_suite(suite)
    checkpoint = load_checkpoint(model, torch.float64)
    text = _readable(checkpoint, read_prompt(prompt, prompt_file, required=False))
    spec = SuiteSpec(suite, options={**calibration_for(model).suites.get(suite, {}), **suite_options(suite_option)})
    if not as_json:
        err.print("One process holds all shares here: for fidelity only, never for secret data.", style="yellow")
    roles = InProcessSuite(spec, parties, device)
    if isinstance(checkpoint.description, EncoderArchitecture):
        right = check_encoder(checkpoint, text, roles, Asked(model if hugging_face else None, tolerance, as_json))
        raise typer.Exit(0 if right else 1)
    ids = _token_ids(checkpoint, text)
    found = _measure(checkpoint, ids, roles, model if hugging_face else None)
    over = excesses(suite, spec.options, found.extremes)
    verdict = judge(found.reference, found.measured, found.rows, over, tolerance, found.difference)
    if as_json:
        facts = {"suite": suite, "options": dict(spec.options), "parties": parties, "tokens": len(ids)}
        facts["tolerance"] = tolerance
        print_json(_report(facts, verdict, found, over))
    else:
        show_points(found.rows, tolerance)
        show_ranges(spec, found.extremes, over)
        effect = LogitsEffect.of(found.reference, found.measured)
        _show_effect(effect, found.difference, found.reference.token == found.measured.token)
        for problem in verdict.problems[1:]:
            out.print(Text(f"also: {problem}", style="red"), soft_wrap=True)
        out.print(Text(verdict.line, style="bold green" if verdict.right else "bold red"), soft_wrap=True)
    if not verdict.right:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Found:
    """What was measured. extremes: of the plaintext run; difference: (largest one from Hugging Face's logits, the one that
    is accepted), None where these were not asked for."""

    reference: Measurement
    measured: Measurement
    extremes: Extremes
    rows: list[ProbeError]
    difference: tuple[float, float] | None


def _measure(checkpoint: Checkpoint, ids: list[int], roles: InProcessSuite, model: Path | None) -> _Found:
    """Measure in plaintext, with Hugging Face where `model` names a folder, and on shares."""
    from launch.measure import fidelity

    difference: tuple[float, float] | None = None
    with err.status("") as status:

        def shown(what: str) -> Callable[[int, int], None]:
            return lambda done, total: status.update(f"{len(ids)} tokens, {what}: layer {done} of {total}")

        reference = fidelity.plaintext(checkpoint, ids, shown("plaintext"))
        if model is not None:
            status.update(f"{len(ids)} tokens, Hugging Face")
            theirs = fidelity.hugging_face_logits(model, ids, checkpoint.architecture.encoder)
            difference = ((theirs - reference.logits).abs().max().item(), HF_TOLERANCE)
            del theirs
        work = shown(f"suite {roles.spec.name}, {roles.parties} parties")
        measured = fidelity.on_shares(checkpoint, ids, roles, work)
    assert reference.extremes is not None
    return _Found(reference, measured, reference.extremes, fidelity.compare(reference, measured), difference)


def _report(facts: dict[str, Any], verdict: Verdict, found: _Found, over: list[Excess]) -> dict[str, Any]:
    """Return all that was found, for programs. facts: what was asked for."""
    from launch.measure.verdict import LogitsEffect, flagged

    reference, measured = found.reference, found.measured
    return {
        "ok": verdict.right,
        "verdict": verdict.line,
        "problems": list(verdict.problems),
        **facts,
        "hugging_face_max_error": None if found.difference is None else found.difference[0],
        "logits": asdict(LogitsEffect.of(reference, measured)),
        "next_token": {"plaintext": reference.token, "shares": measured.token},
        "same_next_token": reference.token == measured.token,
        "flags": None if measured.flags is None else flagged(measured, reference),
        "excesses": [asdict(excess) for excess in over],
        "extremes": found.extremes.kinds,
        "details": {k: v for k, v in found.extremes.details.items() if max(v) < float("inf")},
        "points": [asdict(row) for row in found.rows],
    }


def _readable(checkpoint: Checkpoint, text: str | None) -> str | None:
    """Return the text itself. Raises, before anything is calibrated, what a text raises that no tokenizer here reads."""
    if text is not None:
        checkpoint.tokenizer.encode(text)
    return text


def _token_ids(checkpoint: Checkpoint, text: str | None) -> list[int]:
    """Return the text's tokens; without a text, tokens spread over the vocabulary."""
    if text is not None:
        return checkpoint.tokenizer.encode(text)
    a = checkpoint.architecture
    return [(7919 * n + 13) % a.vocabulary for n in range(min(UNGUIDED_TOKENS, a.positions))]


def _show_effect(effect: LogitsEffect, difference: tuple[float, float] | None, same: bool) -> None:
    out.print(f"logits: largest error {effect.largest:.2g}, {effect.relative:.1g} of the largest logit")
    out.print(f"next token by the suite's arg-max: {'the same' if same else 'another one than in plaintext'}")
    if difference is not None:
        out.print(f"plaintext against Hugging Face's logits: largest difference {difference[0]:.2g}")
