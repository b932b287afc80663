"""Private language-model inference from Python: `PrivateModel`, and the errors that it raises."""

from mpc.errors import ConfigurationError, MpcacheError, PeerError, PeerLost, PeerSilent, PermissionRefused, TapeError
from parties.failures import Busy
from parties.private_model import Cancellation, Cancelled, PrivateModel, PrivateOutput

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
    "TapeError",
]
