"""`mpcache check`: where, layer by layer, a suite's results leave the plaintext ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from launch.console import err, out, print_json
from launch.options import (
    DEFAULT_SUITE,
    DeviceOption,
    JsonOption,
    ModelOption,
    PartiesOption,
    SuiteOption,
    SuiteOptionsOption,
    check_device,
    read_prompt,
    suite_options,
)

if TYPE_CHECKING:
    from launch.fidelity import ProbeError
    from models.checkpoint import Checkpoint

HF_TOLERANCE = 1e-4
UNGUIDED_TOKENS = 32


def run(
    model: ModelOption,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text to check with; by default 32 fixed tokens.")] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", help="File with it; - for standard input.")] = None,
    suite: SuiteOption = DEFAULT_SUITE,
    parties: PartiesOption = 2,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Largest error of a value that is accepted.")] = 0.05,
    device: DeviceOption = "cpu",
    suite_option: SuiteOptionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare plaintext (float64) with shares at every layer, and plaintext with Hugging Face's own logits.

    INSECURE for real data by nature: all parties run in this one process, which holds every share and puts intermediate
    values together. Use it with text that is not secret. Exit code 1 when an error is above the tolerance.
    """
    import torch

    from launch import fidelity
    from models.checkpoint import load_checkpoint

    check_device(device)
    checkpoint = load_checkpoint(model, torch.float64)
    ids = _token_ids(checkpoint, read_prompt(prompt, prompt_file, required=False))
    if not as_json:
        err.print("One process holds all shares here: for fidelity only, never for secret data.", style="yellow")
    with err.status(f"{len(ids)} tokens: plaintext"):
        reference = fidelity.plaintext(checkpoint, ids)
    with err.status(f"{len(ids)} tokens: Hugging Face"):
        hugging_face = (fidelity.hugging_face_logits(model, ids) - reference.logits).abs().max().item()
    with err.status(f"{len(ids)} tokens: suite {suite}, {parties} parties"):
        measured = fidelity.on_shares(checkpoint, ids, suite, parties, device=device, **suite_options(suite_option))
    rows = fidelity.compare(reference, measured)
    first = next((r for r in rows if not r.max_error <= tolerance), None)
    same_token = bool((reference.logits[-1].argmax() == measured.logits[-1].argmax()).item())
    ok = first is None and hugging_face <= HF_TOLERANCE
    if as_json:
        print_json(
            {
                "ok": ok,
                "suite": suite,
                "parties": parties,
                "tokens": len(ids),
                "tolerance": tolerance,
                "hugging_face_max_error": hugging_face,
                "same_next_token": same_token,
                "first_above_tolerance": None if first is None else f"{first.step} {first.point}",
                "points": [asdict(r) for r in rows],
            }
        )
    else:
        _show(rows, tolerance)
        out.print(
            f"plaintext against Hugging Face's logits: largest difference {hugging_face:.2g}"
            + ("" if hugging_face <= HF_TOLERANCE else f", above {HF_TOLERANCE:g}")
        )
        out.print(f"next token: {'the same' if same_token else 'another one than in plaintext'}")
        if first is None:
            out.print(f"every value is within {tolerance:g} of plaintext")
        else:
            out.print(f"first above {tolerance:g}: {first.step} {first.point} ({first.max_error:.3g})", style="bold red")
    if not ok:
        raise typer.Exit(1)


def _token_ids(checkpoint: Checkpoint, text: str | None) -> list[int]:
    """The text's tokens; without a text, tokens spread over the vocabulary."""
    if text is not None:
        return checkpoint.tokenizer.encode(text)
    a = checkpoint.architecture
    return [(7919 * n + 13) % a.vocabulary for n in range(min(UNGUIDED_TOKENS, a.positions))]


def _show(rows: list[ProbeError], tolerance: float) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("step")
    table.add_column("after")
    for column in ("shape", "largest value", "max error", "mean error"):
        table.add_column(column, justify="right")
    for r in rows:
        style = "" if r.max_error <= tolerance else "bold red"
        shape = "x".join(str(size) for size in r.shape)
        table.add_row(
            r.step, r.point, shape, f"{r.largest:.3g}", Text(f"{r.max_error:.2e}", style=style), f"{r.mean_error:.2e}"
        )
    out.print(table)
