"""CrypTen's own API over our channel, tape and generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import ReduceOp

from launch.local.in_process import run_in_process
from mpc.channel import MemoryChannel
from mpc.errors import ConfigurationError, TapeError
from mpc.tape import DealerTape, PartyTape
from protocols.crypten.binding.communicator import plain, wrapped
from protocols.crypten.binding.library import CryptenSession, open_session, use

import crypten  # isort: skip
from crypten.mpc import MPCTensor  # isort: skip
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor, beaver  # isort: skip

Main = Callable[[CryptenSession], Any]


def _run(parties: int, main: Main, dealer: Main | None = None) -> tuple[list[Any], list[CryptenSession]]:
    sessions: list[CryptenSession] = []

    def party_main(channel: MemoryChannel, tape: PartyTape) -> Any:
        session = open_session(parties=parties, tape=tape, channel=channel)
        sessions.append(session)
        with use(session):
            return _at_host(main(session))

    def dealer_main(tape: DealerTape) -> Any:
        session = open_session(parties=parties, tape=tape, channel=None)
        sessions.append(session)
        with use(session):
            return (dealer or main)(session)

    return run_in_process(parties, party_main, dealer_main)[0], sessions


def _held(session: CryptenSession, x: Tensor) -> Tensor:
    """Party 0 holds x, the others zeros; the dealer its shape."""
    if session.channel is None:
        return session.without_content(x.shape)
    return wrapped((x.clone() if session.party == 0 else torch.zeros_like(x)).to(session.device))


def _at_host(found: Any) -> Any:
    """What CrypTen gave, tensors out of its wrapper, at the host."""
    if isinstance(found, list | tuple):
        return [_at_host(x) for x in found]
    if isinstance(found, dict):
        return {name: _at_host(x) for name, x in found.items()}
    return plain(found).cpu() if hasattr(found, "device") else found


@pytest.mark.parametrize("parties", [2, 3])
def test_collectives(parties: int) -> None:
    x = torch.arange(6).reshape(2, 3)

    def main(s: CryptenSession) -> Any:
        comm = crypten.communicator.get()
        assert (comm.get_rank(), comm.get_world_size()) == (s.party, parties)
        if s.channel is None:
            return None
        mine = wrapped((x + 10 * s.party).to(s.device))
        got = {
            "all_reduce": comm.all_reduce(mine),
            "xor": comm.all_reduce(mine, op=ReduceOp.BXOR),
            "batch": comm.all_reduce([mine, mine[0]], batched=True),
            "reduce": comm.reduce(mine, 1),
            "gather": comm.gather(mine, 0),
            "all_gather": comm.all_gather(mine),
            "broadcast": comm.broadcast(mine, 1),
            "broadcasts": comm.broadcast([mine, mine[0]], 0, batched=True),
        }
        assert s.ledger.total().rounds == len(got)
        return got

    results, _ = _run(parties, main)
    parts = [x + 10 * i for i in range(parties)]
    xor = parts[0]
    for p in parts[1:]:
        xor = xor ^ p
    for i, got in enumerate(results):
        assert torch.equal(got["all_reduce"], sum(parts))  # type: ignore[arg-type]
        assert torch.equal(got["xor"], xor)
        assert torch.equal(got["batch"][1], sum(p[0] for p in parts))  # type: ignore[arg-type]
        assert (got["reduce"] is None) == (i != 1)
        assert (got["gather"] is None) == (i != 0)
        assert all(torch.equal(a, b) for a, b in zip(got["all_gather"], parts, strict=True))
        assert torch.equal(got["broadcast"], parts[1])
        assert torch.equal(got["broadcasts"][1], parts[0][0])
    assert torch.equal(results[1]["reduce"], sum(parts))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(results[0]["gather"], parts, strict=True))


@pytest.mark.parametrize("name", ["send_obj", "recv_obj", "broadcast_obj", "scatter", "send", "recv", "isend", "irecv"])
def test_objects_are_not_exchanged(name: str) -> None:
    session = open_session(parties=2, tape=None, channel=None)
    with use(session), pytest.raises(ConfigurationError, match=f"'{name}' is not supported"):
        getattr(crypten.communicator.get(), name)({"a": 1}, 0)


def test_outside_a_session() -> None:
    open_session(parties=2, tape=None, channel=None)
    assert not crypten.communicator.is_initialized()
    with pytest.raises(ConfigurationError, match="CrypTen was called outside a session"):
        MPCTensor(torch.ones(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: crypten.init(),
        lambda: crypten.init_thread(0, 2),
        lambda: crypten.manual_seed(1, 2, 3),
        lambda: crypten.mpc.provider.TrustedFirstParty().square((2,)),
        lambda: crypten.mpc.provider.TrustedThirdParty().generate_binary_triple((2,), (2,)),
        lambda: crypten.mpc.provider.ttp_provider.TTPClient.get(),
        lambda: crypten.mpc.provider.TTPServer(),
        lambda: crypten.common.serial.restricted_loads(b""),
        lambda: crypten.communicator.InProcessCommunicator.send_obj(None, {}, 0),
    ],
)
def test_insecure_parts_are_switched_off(call: Callable[[], Any]) -> None:
    open_session(parties=2, tape=None, channel=None)
    with pytest.raises(ConfigurationError, match="is insecure and switched off"):
        call()


@pytest.mark.parametrize("parties", [2, 3, 4])
def test_zero_sharings(parties: int) -> None:
    def main(s: CryptenSession) -> Any:
        out = [
            ArithmeticSharedTensor.PRZS(3, 5, device=s.device).share,
            BinarySharedTensor.PRZS((3, 5), device=s.device).share,
            ArithmeticSharedTensor.PRZS(torch.Size([3, 5]), device=s.device).share,
        ]
        return out, s.ledger.total()

    results, sessions = _run(parties, main)
    shares = [r[0] for r in results]
    xor = shares[0][1]
    for other in shares[1:]:
        xor = xor ^ other[1]
    assert not sum(s[0] for s in shares).any()
    assert not sum(s[2] for s in shares).any()
    assert not xor.any()
    assert all((s[0] != 0).all() and not torch.equal(s[0], s[2]) for s in shares)
    assert sorted(r[1].bytes_sent for r in results) == [32 * i for i in range(parties)]
    assert all(r[1].rounds == 1 for r in results)
    # whoever lacks one seed of a party cannot predict its part
    for s in sessions:
        if s.channel is not None:
            assert set(s.agreed_pairs()) == set(s.channel.peers)


@pytest.mark.parametrize("parties", [2, 3])
def test_crypten_programs(parties: int) -> None:
    prg = torch.linspace(-3, 3, 24).reshape(4, 6)
    encoded = torch.round(prg * 65536).long()

    def main(s: CryptenSession) -> Any:
        x = MPCTensor.from_shares(_held(s, encoded), precision=16)
        results = [x * x, x.matmul(x.transpose(0, 1)), x.square(), x._ltz(), x.relu(), x.eq(x), x * 0.5, x.max(-1)[0]]
        binary = x.to(crypten.mpc.binary)
        binary._tensor = binary._tensor & binary._tensor
        results.append(binary.to(crypten.mpc.arithmetic, precision=16))
        mine = MPCTensor(torch.full((2, 2), 1.5, device=s.device), src=1)
        results += [mine, MPCTensor.rand(2, 2, device=s.device)]
        opened = [r.reveal() for r in results]
        return opened, s.ledger.total()

    results, sessions = _run(parties, main)
    x = encoded.double() / 65536
    scales = [16, 16, 16, 0, 16, 0, 16, 16, 16, 16, 16]
    got = [v.double() / 2.0**f for v, f in zip(results[0][0], scales, strict=True)]
    expected = [x * x, x @ x.t(), x * x, (x < 0).double(), x.relu(), torch.ones_like(x), x / 2, x.max(-1)[0], x,
                torch.full((2, 2), 1.5).double()]  # fmt: skip
    for i, (a, b) in enumerate(zip(got, expected, strict=False)):
        assert (a - b).abs().max() < 3e-4, i
    assert ((got[-1] >= 0) & (got[-1] < 1)).all()
    dealer = next(s for s in sessions if s.dealing)
    assert dealer.ledger.total().rounds == results[0][1].rounds
    assert dealer.ledger.total().bytes_sent == results[0][1].bytes_sent


@pytest.mark.parametrize("parties", [2, 3])
def test_tuples(parties: int) -> None:
    def main(s: CryptenSession) -> Any:
        p = s.provider
        groups = [
            p.generate_additive_triple((2, 3), (3, 4), "matmul"),
            p.generate_additive_triple((2, 3), (3,), "mul"),
            p.generate_additive_triple((1, 1, 5), (1, 1, 3), "conv1d"),
            p.square((4,)),
            p.generate_binary_triple((2, 3), (3,)),
            p.B2A_rng((50,)),
            p.wrap_rng((200,)),
        ]
        return [[x.share for x in group] for group in groups]

    results, _ = _run(parties, main)

    def total(i: int, j: int, xor: bool = False) -> Tensor:
        out: Tensor = results[0][i][j]
        for r in results[1:]:
            out = out ^ r[i][j] if xor else out + r[i][j]
        return out

    assert torch.equal(total(0, 2), total(0, 0) @ total(0, 1))
    assert torch.equal(total(1, 2), total(1, 0) * total(1, 1))
    assert torch.equal(total(2, 2), torch.conv1d(total(2, 0), total(2, 1)))
    assert torch.equal(total(3, 1), total(3, 0) ** 2)
    assert torch.equal(total(4, 2, True), total(4, 0, True) & total(4, 1, True))
    assert torch.equal(total(5, 0), total(5, 1, True))
    assert total(5, 0).unique().tolist() == [0, 1]
    signed_sum = sum(r[6][0].double() for r in results)
    assert ((signed_sum - total(6, 0).double()) / 2.0**64).round().equal(total(6, 1).double())


def test_wrap_counting_truncation_with_three_parties() -> None:
    x = torch.arange(-500, 500) * 12_345

    def main(s: CryptenSession) -> Any:
        value = ArithmeticSharedTensor.from_shares(_held(s, x) + wrapped(s.zero_sharing(x.shape)), precision=0)
        return beaver.truncate(value, 1000).reveal()

    results, _ = _run(3, main)
    assert (results[0] - x / 1000).abs().max() < 4


def test_settings_belong_to_a_session() -> None:
    a = open_session(parties=2, tape=None, channel=None)
    b = open_session(parties=2, tape=None, channel=None, precision=12)
    with use(a):
        crypten.cfg.functions.exp_iterations = 3
        assert crypten.cfg.encoder.precision_bits == 16
    with use(b), crypten.cfg.temp_override({"functions.exp_iterations": 5}):
        assert crypten.cfg.encoder.precision_bits == 12
        with use(a):
            assert crypten.cfg.encoder.precision_bits == 16
        assert crypten.cfg.functions.exp_iterations == 5
    assert crypten.cfg.encoder.precision_bits == 16
    assert crypten.cfg.functions.exp_iterations == 8


def test_session_arguments() -> None:
    with pytest.raises(ConfigurationError, match="parties must be at least 2, got 1"):
        open_session(parties=1, tape=None, channel=None)

    def main(s: CryptenSession) -> Any:
        if s.channel is not None:
            with pytest.raises(ConfigurationError, match="parties is 3, but the channel connects 2"):
                open_session(parties=3, tape=s.tape, channel=s.channel)
            with pytest.raises(ConfigurationError, match="needs a tape"):
                open_session(parties=2, tape=None, channel=s.channel)
            with pytest.raises(ConfigurationError, match="no generator"):
                crypten.common.rng.generate_random_ring_element((2,), generator=object())

    _run(2, main)


def test_a_dealer_of_another_program_is_refused_before_an_opening() -> None:
    sent: list[int] = []

    def main(s: CryptenSession) -> Any:
        x = ArithmeticSharedTensor.from_shares(_held(s, torch.arange(4)), precision=0)
        try:
            return beaver.mul(x, x)
        finally:
            if s.channel is not None:
                sent.append(s.ledger.total().bytes_sent)

    def dealer(s: CryptenSession) -> Any:
        return s.provider.square((4,))

    with pytest.raises(TapeError, match=r"tape entry 0: this party's program needs 'mul a random sum Z_2\^64 \[4\]'"):
        _run(2, main, dealer)
    assert 0 in sent
    assert set(sent) <= {0}
