"""How large weights may be that a model owner shares: what the rings of products with them leave room for.

The owner alone sees weights in the clear; nobody could tell later that one went around its ring. Biases, rows of tables and
the head have no limit of their own: what biases are added to is bounded and checked, and what rows of the token table and
the head's outputs can reach is looked at before they are shared (`models.calibration.certainty`).
"""

from __future__ import annotations

from torch import Tensor

from models.architecture import Architecture
from models.description import Description
from mpc.errors import RangeError
from protocols.bounds import LARGEST_GAIN, LARGEST_WEIGHT


def largest_weight(description: Description, name: str) -> float:
    """Return what entries of a canonical weight must stay below: of matrices, with what is folded into them, 2^6; of gains
    that stand by themselves 2^8 behind a decoder's norms and 2^6 on an encoder's residual path; of others infinity."""
    if name.startswith("embedding.") or name == "head.weight":
        return float("inf")
    if name.endswith(".gain"):
        return 2.0 ** (LARGEST_GAIN if isinstance(description, Architecture) else LARGEST_WEIGHT)
    return 2.0**LARGEST_WEIGHT if name.endswith(".weight") else float("inf")


def check_size(description: Description, name: str, values: Tensor) -> None:
    """Raise `RangeError` naming a canonical weight, its largest value, the limit and the remedy where it has none of the
    room that the rings assume. Values that are not finite are refused where they are encoded."""
    limit, largest = largest_weight(description, name), float(values.abs().max()) if values.numel() else 0.0
    if limit <= largest < float("inf"):
        raise RangeError(
            f"weight '{name}' reaches {largest:.4g}, rings have room below {limit:g}: scale it down in the checkpoint, and "
            f"what follows or precedes it up by as much"
        )
