"""The calibration of a checkpoint where a command needs it, with one line for the person who waits or should know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launch.terminal.console import err

if TYPE_CHECKING:
    from models.calibration.record import Calibration
    from parties.client.model_reference import ModelReference
    from protocols.registry import SuiteSpec


def calibration_for(directory: Path, suite: SuiteSpec | None = None) -> Calibration:
    """Return the calibration beside a checkpoint, which is made where it is missing or stale.

    suite: a line is written for every kind whose largest value on the calibration's text does not fit its bounds.
    """
    from models.calibration.record import FILE, calibrated

    with err.status("calibrating") as status:
        status.stop()
        found = calibrated(
            directory, status.start, lambda done, total: status.update(f"calibrating: layer {done} of {total}")
        )
    if found.state != "found":
        why = "there was none" if found.state == "made" else "it did not fit the checkpoint and its tokenizer"
        where = f"written to {directory / FILE}" if found.file else f"kept in memory: {directory} cannot be written"
        read = "tokens of a built-in text" if found.text else "token ids spread over the vocabulary, for want of a tokenizer"
        err.print(f"Calibrated on {found.extremes.tokens} {read} ({FILE}: {why}); {where}.", soft_wrap=True)
    if suite is not None:
        for excess in found.excesses(suite.name, suite.options):
            err.print(f"Out of range: {excess.text}", style="yellow", soft_wrap=True)
    return found


def warn_if_never_calibrated(reference: ModelReference) -> None:
    """Warn of a shared model whose owner gave no bounds: it runs within the suite's usual ones, which may not hold its
    values."""
    if reference.ranges is None:
        err.print(
            f"{reference.name} was shared without a calibration: its values may leave the suite's usual bounds. Its owner "
            "can share it again with `mpcache model-owner`, which calibrates it.",
            style="yellow",
            soft_wrap=True,
        )
