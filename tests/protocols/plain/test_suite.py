"""The plain suite against torch's own functions, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mpc.errors import ConfigurationError, RangeError
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.registry import suite_class
from protocols.suite import Activation, Linear, Norm, Value
from tests.tools.recorder import Recorder


@pytest.fixture
def suite() -> PlainSuite:
    return PlainSuite(torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(suite: PlainSuite, program: Coroutine[Any, Any, Value]) -> Tensor:
    return tensor_of(suite.run(program))


def test_registered() -> None:
    assert suite_class("plain") is PlainSuite
    assert (PlainSuite().name, PlainSuite().parties, PlainSuite().fraction_bits) == ("plain", 1, 0)


def test_local_operators() -> None:
    x, y = random(3, 4), random(3, 4, seed=1)
    a, b = PlainValue(x), PlainValue(y)
    assert torch.equal((a + b).tensor, x + y)
    assert torch.equal((a - y + 0.5).tensor, x - y + 0.5)
    assert torch.equal((-a * 3).tensor, x * -3)
    assert torch.equal((a * torch.arange(4)).tensor, x * torch.arange(4))
    assert torch.equal(a[1:, 2].tensor, x[1:, 2])
    assert torch.equal(a.reshape(2, 6).tensor, x.reshape(2, 6))
    assert torch.equal(a.transpose(0, 1).tensor, x.T)
    assert torch.equal(a[:1].expand(3, 4).tensor, x[:1].expand(3, 4))
    assert torch.equal(a.sum(1, keepdim=True).tensor, x.sum(1, keepdim=True))
    assert torch.equal(PlainSuite().concat([a, b], -1).tensor, torch.cat([x, y], -1))


@pytest.mark.parametrize("factor", [0.5, torch.ones(3)])
def test_real_factors_are_refused(factor: float | Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"'\*' takes a public integer or int64 tensor, got"):
        PlainValue(torch.ones(3)) * factor  # type: ignore[operator]


def test_index_of_a_large_one_hot_in_half_precision() -> None:
    one_hot = torch.zeros(1, 50257, dtype=torch.bfloat16)
    one_hot[0, 50255] = 1
    assert (PlainValue(one_hot) * torch.arange(50257)).sum(-1).tensor.tolist() == [50255]


def test_products(suite: PlainSuite) -> None:
    x, y, w, b, r = (
        random(2, 3, 4),
        random(2, 4, 5, seed=1),
        random(4, 6, seed=2),
        random(6, seed=3),
        random(2, 3, 6, seed=4),
    )
    vx = PlainValue(x)
    assert torch.equal(run(suite, suite.matmul(vx, PlainValue(y))), x @ y)
    assert torch.equal(run(suite, suite.mul(vx, PlainValue(y[:, :3, :4]))), x * y[:, :3, :4])
    assert torch.equal(run(suite, suite.scale(vx, 0.3)), x * 0.3)
    layer = Linear(PlainValue(w), PlainValue(b))
    torch.testing.assert_close(run(suite, suite.linear(vx, layer, PlainValue(r))), functional.linear(x, w.T, b) + r)
    torch.testing.assert_close(run(suite, suite.linear(vx, Linear(PlainValue(w)))), x @ w)


def test_embedding_takes_rows(suite: PlainSuite) -> None:
    table = random(7, 3)
    one_hot = functional.one_hot(torch.tensor([6, 0, 3]), 7)
    found = run(suite, suite.embed(suite.input((3, 7), one_hot, 0), PlainValue(table)))
    assert torch.equal(found, table[[6, 0, 3]])


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_folded_norm_equals_torch(suite: PlainSuite, kind: Any) -> None:
    x, w, gain, offset, bias = (
        random(5, 8) + 3,
        random(8, 4, seed=1),
        random(8, seed=2),
        random(8, seed=3),
        random(4, seed=4),
    )
    if kind == "layer":
        wanted = functional.layer_norm(x, (8,), gain, offset, 1e-3) @ w + bias
        folded = gain[:, None] * w
        folded, shift = folded - folded.mean(0), offset @ w + bias
    else:
        wanted = functional.rms_norm(x, (8,), gain, 1e-3) @ w + bias
        folded, shift = gain[:, None] * w, bias
    layer = Linear(PlainValue(folded), PlainValue(shift))
    (found,) = suite.run(suite.norm_linear(PlainValue(x), Norm(kind, 1e-3), [layer]))
    torch.testing.assert_close(tensor_of(found), wanted)


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("relu", lambda x: x.clamp(min=0)),
    ],
)
def test_activations(suite: PlainSuite, kind: Activation, oracle: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    torch.testing.assert_close(run(suite, suite.activation(PlainValue(x), kind)), oracle(x))


def test_unknown_activation(suite: PlainSuite) -> None:
    with pytest.raises(ConfigurationError, match="unknown activation 'mish'"):
        suite.run(suite.activation(PlainValue(torch.ones(2)), "mish"))  # type: ignore[arg-type]


def test_masked_softmax_is_exactly_zero(suite: PlainSuite) -> None:
    x = random(2, 3, 5) * 50
    mask = torch.tensor([[True, False, True, True, False], [False] * 4 + [True], [True] * 5])
    found = run(suite, suite.softmax(PlainValue(x), mask))
    assert torch.equal(found == 0, ~mask.expand(2, 3, 5))
    torch.testing.assert_close(found[:, 0][:, mask[0]], torch.softmax(x[:, 0][:, mask[0]], -1))
    torch.testing.assert_close(run(suite, suite.softmax(PlainValue(x))), torch.softmax(x, -1))


def test_softmax_refuses_an_empty_row(suite: PlainSuite) -> None:
    with pytest.raises(RangeError, match=r"a row of the mask of shape \[2, 3\] is False everywhere"):
        suite.run(suite.softmax(PlainValue(torch.ones(2, 3)), torch.tensor([[True] * 3, [False] * 3])))


def test_comparisons_and_ties(suite: PlainSuite) -> None:
    x = torch.tensor([[1.0, 4.0, 4.0, -2.0], [-3.0, -3.0, -5.0, -3.0], [0.0, -0.0, -1.0, 0.0]])
    assert run(suite, suite.less_than_zero(PlainValue(x))).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]
    assert run(suite, suite.max(PlainValue(x))).tolist() == [[4], [-3], [0]]
    assert run(suite, suite.argmax(PlainValue(x))).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_attention_and_rotation(suite: PlainSuite) -> None:
    q, k, v = random(2, 3, 4), random(2, 5, 4, seed=1), random(2, 5, 4, seed=2)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    found = run(suite, suite.attention(PlainValue(q), PlainValue(k), PlainValue(v), mask))
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(found, wanted)
    angle = random(3, 2, seed=3)
    turned = torch.view_as_complex(torch.stack([q[..., :2], q[..., 2:]], -1)) * torch.exp(1j * angle)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    torch.testing.assert_close(run(suite, suite.rotate(PlainValue(q), cos, sin)), torch.cat([turned.real, turned.imag], -1))


def test_values_in_and_out(suite: PlainSuite) -> None:
    x = random(2, 3)
    share = suite.output(suite.input((2, 3), x, 0))
    assert torch.equal(share.share, x)
    assert share.fraction_bits == 0
    assert tensor_of(suite.public(2.5, (2, 2))).tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert torch.equal(run(suite, suite.weight("w", (2, 3), x)), x)
    assert run(suite, suite.mask_for_cache(PlainValue(x))).shape == (2, 3)
    assert run(suite, suite.append(PlainValue(x), PlainValue(x[:1]), 0)).shape == (3, 3)


def test_bad_input(suite: PlainSuite) -> None:
    with pytest.raises(ConfigurationError, match=r"weight 'w': declared shape \[2, 3\], got a tensor of shape \[3, 2\]"):
        suite.run(suite.weight("w", (2, 3), torch.ones(3, 2)))
    with pytest.raises(ConfigurationError, match=r"input: suite 'plain' computes on data, but no tensor of shape \[4\]"):
        suite.input((4,), None, 0)
    with pytest.raises(ConfigurationError, match=r"dtype must be a floating-point type, got torch\.int64"):
        PlainSuite(torch.int64)
    with pytest.raises(ConfigurationError, match="values cannot change suites"):
        suite.output(object())  # type: ignore[arg-type]


def test_values_are_not_printed() -> None:
    assert repr(PlainValue(torch.tensor([1234.5]))) == "PlainValue(shape=[1], dtype=torch.float32)"


def test_recorder_keeps_copies_in_order() -> None:
    recorder, x = Recorder(), torch.ones(2)
    recorder("h", PlainValue(x))
    x.add_(1)
    recorder("h", PlainValue(x))
    assert [t.tolist() for t in recorder.values["h"]] == [[1, 1], [2, 2]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    x = random(4, 16).float()
    results = []
    for device in ("cpu", "cuda"):
        suite = PlainSuite(device=device)
        value = suite.input((4, 16), x, 0)
        results.append(suite.output(suite.run(suite.attention(value[None], value[None], value[None], None))).share.cpu())
    torch.testing.assert_close(results[0], results[1])
