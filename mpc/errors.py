"""Typed errors. Each names the argument or the peer, the value, and what to do; none carries a secret.

`code` is stable and may be matched by programs; the message is for a person. Nothing that depends on a share, a mask, a
token or a weight may be put into an error: shapes, names, sizes and public configuration only.
"""

from __future__ import annotations


class MpcacheError(Exception):
    """Base of every error that this project raises on purpose."""

    code = "error"


class ConfigurationError(MpcacheError):
    """An argument, a configuration key or a file has a value that cannot work."""

    code = "configuration"


class EnvironmentProblem(MpcacheError):
    """A package, a device or a port that is needed is missing or is the wrong one."""

    code = "environment"


class RangeError(MpcacheError):
    """A public bound shows that a value cannot be represented (ring bits, fraction bits, lengths)."""

    code = "range"


class WireError(MpcacheError):
    """A peer sent bytes of the wrong size, shape, ring or order."""

    code = "wire"


class PeerError(MpcacheError):
    """A peer failed. `peer` is its name, `step` what was going on."""

    code = "peer"

    def __init__(self, peer: str, step: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason} (during {step})")
        self.peer = peer
        self.step = step
        self.reason = reason


class PeerLost(PeerError):
    """The connection to a peer ended, or could not be made."""

    code = "peer-lost"


class PeerSilent(PeerError):
    """A peer is connected but sent nothing before the deadline."""

    code = "peer-silent"


class ManifestMismatch(MpcacheError):
    """Two parties hold different manifests (model, architecture, suite, precision, lengths, versions)."""

    code = "manifest"


class TapeError(MpcacheError):
    """Correlated randomness is missing, was used, or belongs to another program."""

    code = "tape"


class CheckpointError(MpcacheError):
    """A checkpoint directory cannot be read or asks for something that is not supported."""

    code = "checkpoint"


class PermissionRefused(MpcacheError):
    """A peer is not allowed to do what it asks for."""

    code = "permission"
