"""Binds CrypTen 0.4.1 to our channel, our dealer's tape and our generator.

`install()` replaces, once per process, the parts of CrypTen through which randomness, tuples or messages come:

| CrypTen's | becomes |
| --- | --- |
| `communicator.get`, `is_initialized` | the communicator of the thread's session (`ChannelCommunicator`) |
| `mpc.get_default_provider` | the provider of the thread's session (`TapeProvider`) |
| `generate_random_ring_element`, `generate_kbit_random_tensor` | AES-CTR from a seed of this party |
| `ArithmeticSharedTensor.PRZS`, `BinarySharedTensor.PRZS` | zero-sharings from pairwise seeds (see `crypten_session`) |
| first-party, third-party provider, `init`, `init_thread`, `manual_seed`, object serialisation | raise |
| `torch.matmul` inside the Beaver protocol | `mpc.ring.matmul` |
| `cfg` values set while a session is in force | kept by that thread only |

CrypTen's own generators are a Mersenne Twister with 32 bits of seed, from which a peer recovers the other's weights; its
first party sees every triple. None of that is reachable after `install()`. Importing crypten before this module is fine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from mpc import ring
from mpc.channel import Channel
from mpc.errors import ConfigurationError
from mpc.ledger import Ledger
from mpc.tape import Tape
from protocols.crypten.binding.communicator import ChannelCommunicator, plain, wrapped
from protocols.crypten.binding.provider import TapeProvider
from protocols.crypten.binding.requirement import require_crypten
from protocols.crypten.binding.session import CryptenSession, current_session, has_session, use_session

require_crypten()
import crypten  # noqa: E402
import crypten.common.rng  # noqa: E402
import crypten.common.serial  # noqa: E402
import crypten.communicator  # noqa: E402
import crypten.config  # noqa: E402
import crypten.mpc  # noqa: E402
import crypten.mpc.primitives.arithmetic  # noqa: E402
import crypten.mpc.primitives.beaver  # noqa: E402
import crypten.mpc.primitives.binary  # noqa: E402
import crypten.mpc.provider.tfp_provider  # noqa: E402
import crypten.mpc.provider.ttp_provider  # noqa: E402
from crypten.config.config import CrypTenConfig  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402

__all__ = ["CryptenSession", "current_session", "install", "open_session", "plain", "use", "wrapped"]

_lock = threading.Lock()
_installed = False


def open_session(
    *,
    parties: int,
    tape: Tape | None,
    channel: Channel | None,
    ledger: Ledger | None = None,
    precision: int = 16,
    shape_only: bool = False,
) -> CryptenSession:
    """Return a session with its CrypTen communicator and provider. Installs the binding on the first call.

    channel None: the dealer (a dealer's tape) or an estimate (tape None). precision: CrypTen's own fraction bits.
    shape_only: compute on `ShapeTensor`s there (only our protocols can).
    """
    install()
    session = CryptenSession(parties, tape, channel, ledger, precision, shape_only)
    session.communicator = ChannelCommunicator(session)
    session.provider = TapeProvider(session)
    return session


@contextmanager
def use(session: CryptenSession) -> Iterator[CryptenSession]:
    """CrypTen calls of this thread, inside the `with`, belong to `session`."""
    with use_session(session):
        if session.config is None:
            session.config = copy.deepcopy(crypten.cfg.config)
            session.config.encoder.precision_bits = session.precision
        yield session


def install() -> None:
    """Replace what the module's table names. Safe to call again, from any thread."""
    global _installed
    with _lock:
        if _installed:
            return
        _bind_communication()
        _bind_randomness()
        _forbid_insecure_parts()
        _keep_configuration_per_session()
        crypten.mpc.primitives.beaver.torch = _RingTorch()
        _installed = True


# ---- what replaces CrypTen's parts -----------------------------------------------------------------------------------
def _bind_communication() -> None:
    crypten.communicator.get = ChannelCommunicator.get
    crypten.communicator.is_initialized = has_session
    crypten.mpc.get_default_provider = lambda: current_session().provider


def _shape(size: Sequence[Any]) -> tuple[int, ...]:
    if len(size) == 1 and not isinstance(size[0], int):
        return tuple(int(n) for n in size[0])
    return tuple(int(n) for n in size)


def _own_device(device: Any) -> None:
    wanted = torch.device("cpu") if device is None else torch.device(device)
    held = current_session().device
    if device is not None and wanted.type != held.type:
        raise ConfigurationError(f"the session's tensors live on {held.type}, randomness was asked for on {wanted.type}")


def _random_ring_element(size: Any, ring_size: int = 2**64, generator: Any = None, device: Any = None, **_: Any) -> Any:
    if generator is not None or ring_size != 2**64:
        raise ConfigurationError("CrypTen's generators are replaced: no generator and no other ring can be given")
    _own_device(device)
    return wrapped(current_session().local_ring(_shape([size])))


def _kbit_random_tensor(size: Any, bitlength: int | None = None, generator: Any = None, device: Any = None, **_: Any) -> Any:
    if generator is not None:
        raise ConfigurationError("CrypTen's generators are replaced: no generator can be given")
    _own_device(device)
    return wrapped(current_session().local_ring(_shape([size]), 64 if bitlength is None else bitlength))


def _arithmetic_przs(*size: Any, device: Any = None) -> Any:
    _own_device(device)
    share = current_session().zero_sharing(_shape(size))
    if (
        device is None and share.is_cuda and share.numel() == 0
    ):  # of `MPCTensor([])`: CrypTen adds an empty tensor of the host
        return ArithmeticSharedTensor.from_shares(share.cpu())
    return ArithmeticSharedTensor.from_shares(wrapped(share))


def _binary_przs(*size: Any, device: Any = None) -> Any:
    _own_device(device)
    return BinarySharedTensor.from_shares(wrapped(current_session().zero_sharing(_shape(size), "xor")))


def _bind_randomness() -> None:
    modules = (
        crypten.common.rng,
        crypten.mpc.primitives.arithmetic,
        crypten.mpc.primitives.binary,
        crypten.mpc.provider.tfp_provider,
        crypten.mpc.provider.ttp_provider,
    )
    for module in modules:
        for name, function in (
            ("generate_random_ring_element", _random_ring_element),
            ("generate_kbit_random_tensor", _kbit_random_tensor),
        ):
            if hasattr(module, name):
                setattr(module, name, function)
    ArithmeticSharedTensor.PRZS = staticmethod(_arithmetic_przs)
    BinarySharedTensor.PRZS = staticmethod(_binary_przs)


def _forbidden(name: str) -> Any:
    def raise_(*_: Any, **__: Any) -> NoReturn:
        raise ConfigurationError(f"CrypTen's {name} is insecure and switched off; tuples come from the dealer's tape, "
                                 "messages go over the session's channel")  # fmt: skip

    return raise_


def _forbid_insecure_parts() -> None:
    ttp, tfp = crypten.mpc.provider.ttp_provider, crypten.mpc.provider.tfp_provider
    tuples = ("generate_additive_triple", "square", "generate_binary_triple", "wrap_rng", "B2A_rng")
    for owner in (tfp.TrustedFirstParty, ttp.TrustedThirdParty):
        for name in tuples:
            setattr(owner, name, _forbidden(f"{owner.__name__}.{name}"))
    ttp.TTPServer.__init__ = _forbidden("trusted third party server")
    for name in ("_init", "get"):
        setattr(ttp.TTPClient, name, staticmethod(_forbidden("trusted third party client")))
    serial = crypten.common.serial
    serial.restricted_loads = _forbidden("object serialisation")
    serial.safe_pickle.load = staticmethod(_forbidden("object serialisation"))
    for communicator in (crypten.communicator.DistributedCommunicator, crypten.communicator.InProcessCommunicator):
        for name in ("send_obj", "recv_obj", "broadcast_obj"):
            setattr(communicator, name, _forbidden("object serialisation"))
    for name in ("init", "init_thread", "manual_seed", "_setup_prng", "_sync_seeds", "load_from_party"):
        setattr(crypten, name, _forbidden(name))


class _RingTorch:
    """The module torch as CrypTen's Beaver protocol sees it: integer matrix products are exact and fast."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def matmul(x: Any, y: Any) -> Any:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return ring.matmul(x, y)
        return wrapped(ring.matmul(plain(x), plain(y)))


def _keep_configuration_per_session() -> None:
    """`cfg.x.y = z` and `temp_override`, inside a session, change that session's copy only.

    CrypTen's functions override process-wide settings for the length of a call, which concurrent sessions would see.
    """
    shared = crypten.config.cfg.__dict__.pop("config")

    class _Settings:
        def __init__(self, value: Any) -> None:
            self.value = value

        def __get__(self, instance: Any, owner: Any) -> Any:
            if has_session() and current_session().config is not None:
                return current_session().config
            return self.value

        def __set__(self, instance: Any, value: Any) -> None:
            if has_session():
                current_session().config = value
            else:
                self.value = value

    CrypTenConfig.config = _Settings(shared)
