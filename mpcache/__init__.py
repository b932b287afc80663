"""Private language-model inference on secret shares: what a program imports.

The five packages below (`launch`, `parties`, `models`, `protocols`, `mpc`) are for those who look inside. Names are loaded
when they are first asked for, so that `import mpcache` takes milliseconds and neither torch nor gRPC.

>>> import mpcache
>>> mpcache.estimate("tiny", prompt_tokens=16, new_tokens=2).first_token.rounds > 0
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.costs.tracing import Setting, StageCosts
    from models.drafting import DraftPlan
    from mpc.errors import (
        ConfigurationError,
        EnvironmentProblem,
        MpcacheError,
        PeerError,
        PeerLost,
        PeerSilent,
        PermissionRefused,
        TapeError,
    )
    from mpcache.catalogue import Policy, policies
    from mpcache.costs import GenerationCosts, estimate
    from parties.client.cancellation import Cancellation
    from parties.client.private_model import PrivateModel, PrivateOutput
    from parties.client.sampling_params import SamplingParams
    from parties.client.texts import Classification, LabelledToken
    from parties.errors import Busy, Cancelled, RangeExceeded, WrongOutput
    from protocols.range_findings import RangeFinding
    from protocols.registry import SuiteSpec

    __version__: str

_MODULES = {
    "mpc.errors": (
        "ConfigurationError",
        "EnvironmentProblem",
        "MpcacheError",
        "PeerError",
        "PeerLost",
        "PeerSilent",
        "PermissionRefused",
        "TapeError",
    ),
    "models.costs.tracing": ("Setting", "StageCosts"),
    "models.drafting": ("DraftPlan",),
    "mpcache.catalogue": ("Policy", "policies"),
    "mpcache.costs": ("GenerationCosts", "estimate"),
    "parties.client.cancellation": ("Cancellation",),
    "parties.client.private_model": ("PrivateModel", "PrivateOutput"),
    "parties.client.sampling_params": ("SamplingParams",),
    "parties.client.texts": ("Classification", "LabelledToken"),
    "parties.errors": ("Busy", "Cancelled", "RangeExceeded", "WrongOutput"),
    "protocols.range_findings": ("RangeFinding",),
    "protocols.registry": ("SuiteSpec",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Busy",
    "Cancellation",
    "Cancelled",
    "Classification",
    "ConfigurationError",
    "DraftPlan",
    "EnvironmentProblem",
    "GenerationCosts",
    "LabelledToken",
    "MpcacheError",
    "PeerError",
    "PeerLost",
    "PeerSilent",
    "PermissionRefused",
    "Policy",
    "PrivateModel",
    "PrivateOutput",
    "RangeExceeded",
    "RangeFinding",
    "SamplingParams",
    "Setting",
    "StageCosts",
    "SuiteSpec",
    "TapeError",
    "WrongOutput",
    "__version__",
    "estimate",
    "policies",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # type checkers know the names from above

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("mpcache")
        elif name in _PLACES:
            value = getattr(import_module(_PLACES[name]), name)
        else:
            raise AttributeError(f"module 'mpcache' has no attribute '{name}'")
        globals()[name] = value
        return value
