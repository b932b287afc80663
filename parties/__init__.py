"""Who talks to whom: client, compute party, dealer and model owner over gRPC with mutual TLS.

`from parties import PrivateModel` is the way in from Python; it and the errors that it raises are loaded when asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpc.errors import ConfigurationError, MpcacheError, PeerError, PeerLost, PeerSilent, PermissionRefused, TapeError
    from parties.client.private_model import Cancellation, Cancelled, PrivateModel, PrivateOutput
    from parties.errors import Busy, RangeExceeded, WrongOutput
    from protocols.range_findings import RangeFinding

# gRPC's core writes every refused handshake to stderr; what a person needs to know of it is in our own errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_PLACES = {
    **dict.fromkeys(("Cancellation", "Cancelled", "PrivateModel", "PrivateOutput"), "parties.client.private_model"),
    **dict.fromkeys(
        (
            "ConfigurationError",
            "MpcacheError",
            "PeerError",
            "PeerLost",
            "PeerSilent",
            "PermissionRefused",
            "TapeError",
        ),
        "mpc.errors",
    ),
    **dict.fromkeys(("Busy", "RangeExceeded", "WrongOutput"), "parties.errors"),
    "RangeFinding": "protocols.range_findings",
}

__all__ = [
    "Busy",
    "Cancellation",
    "Cancelled",
    "ConfigurationError",
    "MpcacheError",
    "PeerError",
    "PeerLost",
    "PeerSilent",
    "PermissionRefused",
    "PrivateModel",
    "PrivateOutput",
    "RangeExceeded",
    "RangeFinding",
    "TapeError",
    "WrongOutput",
]


if not TYPE_CHECKING:  # type checkers know the names from above, and modules of this package as such

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(import_module(_PLACES[name]), name)
        raise AttributeError(f"module 'parties' has no attribute '{name}'")
