"""Memory of every role: arithmetic by hand, what live bytes are, and the check before a run."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.local.memory import listening_memory, peak_memory
from launch.predict import room
from launch.terminal.console import Settings
from models.costs.estimation import estimate, layer_elements
from models.costs.memory import BUFFERS, MASKED, SERVING, START, Held, memory_of
from models.costs.tracing import Setting
from models.shapes import ENCODER_SHAPES, SHAPES, find_shape
from mpc.errors import EnvironmentProblem
from mpc.shape_tensor import live_bytes, shape_tensor
from protocols.registry import SuiteSpec

RECALL = Path(__file__).parents[3] / "models" / "recall" / "gpt2"


def test_live_bytes_follow_references() -> None:
    with live_bytes() as live:
        x = shape_tensor((3, 4))
        view = x.reshape(12)
        y = x + view.reshape(3, 4)
        assert live.now == 2 * 96
        del x
        assert live.now == 2 * 96  # the view is still there
        del view, y
        assert live.now == 0
        assert shape_tensor((5,), 1).numel() == 5
    assert max(live.most.values()) == 2 * 96


def test_stages_by_hand() -> None:
    held = Held([(1_000_000, 16), (500_000, 8)], (40, 30), ({"attention": 100, "mlp": 1000}, {"mlp": 10}), 4_000_000)
    found = memory_of(held)
    party = found.stages["party"]
    assert party["start"] == START
    assert party["prompt"] == SERVING + BUFFERS + 20_000_000 + 40 + 1000 * MASKED.party[""]
    assert party["token"] == SERVING + BUFFERS + 20_000_000 + 30 + 1000 * MASKED.left[0]
    assert found.stages["dealer"]["prompt"] == SERVING + BUFFERS + 10_000_000 + 20 + 1000 * MASKED.dealer[""]
    owner = found.stages["model owner"]["share"]
    assert found.here(3) == found.peak("client") + 3 * party["share"] + found.stages["dealer"]["share"] + owner


@pytest.mark.parametrize(
    ("largest", "layer", "file", "measured"),
    [
        (512 * 96, 112_224, 1_680_128, 332_000_000),
        (8192 * 768, 7_087_872, 166_866_944, 779_000_000),
        (50257 * 768, 7_087_872, 340_464_964, 1_547_000_000),
    ],
    ids=["small", "four layers of gpt2's", "gpt2's vocabulary"],
)
def test_an_owner_that_calibrates(largest: int, layer: int, file: int, measured: int) -> None:
    """As processes held that calibrated such checkpoints, to within a tenth; a calibrated one takes less."""
    owner = memory_of(Held([(largest, 16)], (0, 0), ({}, {}), file, layer=layer)).stages["model owner"]
    assert abs(owner["start"] / measured - 1) < 0.1
    assert owner["share"] < owner["start"]


@pytest.mark.parametrize(
    ("policy", "party", "dealer"),
    [("h2o:budget=0.4", 772_000_000, 630_000_000), ("snapkv:budget=0.4", 694_000_000, 591_000_000)],
)
def test_policies_that_rank_all_tokens(policy: str, party: int, dealer: int) -> None:
    """As processes held in a prompt of 512 tokens of models/recall/gpt2 (`tests.tools.estimate_check`), to within 15 %."""
    options = {"residual": "8 10", "score": "7 8"}
    found = estimate(find_shape(str(RECALL)), Setting("masked", 2, policy, options), 512, 2).memory
    assert abs(found.peak("party") / party - 1) < 0.15
    assert abs(found.peak("dealer") / dealer - 1) < 0.15


@pytest.mark.parametrize(
    ("prompt", "party", "dealer"), [(64, 415_000_000, 421_000_000), (512, 766_000_000, 545_000_000)], ids=["short", "long"]
)
def test_servers_of_crypten(prompt: int, party: int, dealer: int) -> None:
    """As processes of models/recall/gpt2 held, to within 12 %: CrypTen itself is brought in, and shares' files are read."""
    found = estimate(find_shape(str(RECALL)), Setting("crypten"), prompt, 2).memory
    assert abs(found.peak("party") / party - 1) < 0.12
    assert abs(found.peak("dealer") / dealer - 1) < 0.12


def test_layers_are_counted_by_their_weights() -> None:
    assert layer_elements(SHAPES["gpt2"]) == 12 * 768**2 + 9 * 768
    assert layer_elements(ENCODER_SHAPES["tiny-encoder"]) > 0


def test_a_session_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, said = Setting("masked", 2), list[str]()
    memory = room.session_memory(SHAPES["tiny"], setting, 8, 2)
    for free, warned in ((2 * memory.here(2), 0), (memory.here(2), 1)):
        monkeypatch.setattr(room, "available_memory", lambda free=free: free)
        assert "2 parties of" in room.check_room(memory, 2, "use less", said.append)
        assert len(said) == warned
    monkeypatch.setattr(room, "available_memory", lambda: memory.here(2) // 2)
    with pytest.raises(EnvironmentProblem, match=r"the processes need .* are free; end other programs, shorten the prompt"):
        room.check_session(SHAPES["tiny"], setting, 8, 2)


def test_texts_and_running_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder's texts are checked likewise, and roles that run already, on this machine alone."""
    encoder, spec, said = ENCODER_SHAPES["tiny-encoder"], SuiteSpec("masked"), list[str]()
    monkeypatch.setattr(room, "available_memory", lambda: 1 << 40)
    assert "2 parties of" in room.check_texts(encoder, spec, 2, [5, 9])
    monkeypatch.setattr(room, "available_memory", lambda: 50_000_000)
    with pytest.raises(EnvironmentProblem, match=r"are free; end other programs, give fewer or shorter texts"):
        room.check_texts(encoder, spec, 2, [5, 9])
    here, away = ["127.0.0.1:7000", "localhost:7001"], ["127.0.0.1:7000", "10.0.0.2:7000"]
    asked = SHAPES["tiny"], Setting("masked")
    monkeypatch.setattr(room, "listening_memory", lambda ports: {7000: START + 5_000_000, 7001: 1})
    assert room.check_running(*asked, away, (64, 4), said.append) is None
    with pytest.raises(EnvironmentProblem, match=r"64 tokens and 4 new ones make them take .*buckets.*`mpcache --yes"):
        room.check_running(*asked, here, (64, 4), said.append)
    monkeypatch.setattr(Settings, "yes", True)
    needed = room.check_running(*asked, here, (64, 4), said.append)
    assert "50.00 MB are free: if a process is killed" in said[0]
    monkeypatch.setattr(room, "available_memory", lambda: 1 << 40)
    memory = room.session_memory(*asked, 64, 4)
    assert room.check_running(*asked, here, (64, 4), said.append) == needed
    assert needed == memory.here(2) - memory.peak("client") - 3 * START - 5_000_000
    assert len(said) == 1


def test_what_a_listening_process_holds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = listening_memory([port, 1])
    assert list(found) == [port]
    assert 0.3 < found[port] / peak_memory() <= 1
