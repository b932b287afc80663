"""What is asked for, checked against this installation before work starts."""

from __future__ import annotations

from mpc.errors import ConfigurationError


def check_suite(name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` for an unknown suite or one that keeps nothing secret.

    >>> check_suite("masked")
    'masked'
    """
    from protocols.registry import check_secure

    return check_secure(name)


def check_device(name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` for a device that torch does not know or cannot use.

    >>> check_device("cpu")
    'cpu'
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"device '{name}' is unknown; write cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigurationError(f"device '{name}' is not there ({count} CUDA devices); use --device cpu")
    elif device.type != "cpu":
        raise ConfigurationError(f"device '{name}' is not supported; write cpu, cuda or cuda:N")
    return name
