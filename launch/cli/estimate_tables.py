"""What `mpcache estimate` prints below its table of costs: memory of the roles, how seconds are predicted, notes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launch.terminal.console import byte_count, err, out

if TYPE_CHECKING:
    from launch.predict.seconds import Machines
    from models.architectures import AnyArchitecture
    from models.costs.estimation import Estimate


def weights_text(a: AnyArchitecture, tied: bool) -> str:
    """Return how many weights there are. tied: whether the checkpoint has the token table and the head as one."""
    if not tied:
        return f"{a.parameters():,} weights"
    own = a.parameters() - a.vocabulary * a.width
    return f"{own:,} weights, of which a party holds the token table a second time as the head ({a.parameters():,})"


def show_memory(found: Estimate) -> None:
    """Print what every role holds, by stage."""
    from rich.table import Table

    from models.costs.memory import STAGES

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("memory")
    for column in (*STAGES, "peak"):
        table.add_column(column, justify="right")
    for role, stages in found.memory.stages.items():
        counts = [byte_count(stages[stage]) if stage in stages else "" for stage in STAGES]
        table.add_row(role, *counts, byte_count(found.memory.peak(role)))
    out.print(table)
    parties = found.setting.parties
    out.print(f"All {parties + 2} roles on one machine hold {byte_count(found.memory.here(parties))} at most.")


def show_seconds(machines: Machines) -> None:
    """Print how seconds are predicted."""
    rates = machines.rates
    out.print("sent: bytes of one party to the others; offline: of the party that receives the dealer's corrections.")
    out.print(
        f"seconds: {machines.formula}. Products here: {rates.vector / 1e9:.2g} and "
        f"{rates.matrix / 1e9:.2g} 10^9 multiply-adds/s (few rows, many). Starting the servers: "
        f"{machines.start_seconds():.2g} s, and once the loading of the weights."
    )


def warn_beyond(model: str, own: AnyArchitecture, prompt: int, new: int) -> None:
    """Say, before anything is priced, that no session of the model takes lengths that its positions do not hold."""
    from models.architecture import Architecture

    room = own.room(prompt) if isinstance(own, Architecture) else own.positions + 1 - prompt
    if new > room:
        err.print(
            f"{model} has {own.positions} positions, too few for {prompt} tokens and {new} new ones: no session of it takes "
            "them. What follows is priced as if it had enough.",
            style="yellow",
            soft_wrap=True,
        )


def warn_before(model: str, suite: str, own: AnyArchitecture, prompt: int, new: int) -> None:
    """Say, before anything is priced, what sessions of the model will not do, or will do otherwise."""
    warn_beyond(model, own, prompt, new)
    _note_calibration(model, suite)


def _note_calibration(model: str, suite: str) -> None:
    """Say that a checkpoint's sessions will have other bounds, where none were calibrated for the suite yet."""
    from models.calibration.record import read_record
    from protocols.registry import secure_suites

    folder = Path(model)
    if suite not in secure_suites() or not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return
    record = read_record(folder)
    if record is None or suite not in record.suites:
        err.print(
            f"{model} has no calibration for suite {suite}: the suite's usual bounds are counted. Its sessions are "
            "calibrated first and take other rings, which is up to a tenth of the rounds and bytes: do so now by "
            f"mpcache calibrate --model {model}",
            style="yellow",
            soft_wrap=True,
        )


def show_notes(disturbed: str) -> None:
    """Print what disturbs this machine, if anything."""
    if disturbed:
        out.print(f"This machine is not quiet ({disturbed}): seconds of computing are those of a quiet one at best.")
