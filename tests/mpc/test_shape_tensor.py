"""Ghosts have the shapes that tensors have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mpc.shape_tensor import ShapeTensor, broadcast, matmul_shape, new_shape_tensor

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "public left": lambda x, y: torch.ones(4, 1, 3, dtype=torch.int64).sum() * 1 - x,
    "scalar": lambda x, y: (x * 3 - 1) << 2,
    "bits": lambda x, y: ~(x & y) ^ (x >> 1),
    "compare": lambda x, y: (x >= 0).to(torch.int64),
    "slice": lambda x, y: x[..., :1],
    "new axis": lambda x, y: x[None] + y,
    "index": lambda x, y: x.reshape(-1)[torch.tensor([1, 2, 0])],
    "permute": lambda x, y: x.permute(2, 0, 1),
    "transpose": lambda x, y: x.transpose(0, 2),
    "expand": lambda x, y: x.expand(5, 4, 2, 3),
    "sum": lambda x, y: x.sum(-1),
    "sum keepdim": lambda x, y: x.sum(1, keepdim=True),
    "stack": lambda x, y: torch.stack([x, x], dim=-1),
    "cat": lambda x, y: torch.cat([x, x], dim=1),
    "unbind": lambda x, y: x.unbind(0)[1],
    "zeros": lambda x, y: torch.zeros_like(x),
    "where": lambda x, y: torch.where(torch.ones(4, 2, 1, dtype=torch.bool), x, y),
    "matmul": lambda x, y: torch.matmul(x, x.transpose(1, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_shapes_agree(name: str) -> None:
    x, y = torch.zeros(4, 2, 3, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    expected = OPERATIONS[name](x, y)
    found = OPERATIONS[name](new_shape_tensor((4, 2, 3)), new_shape_tensor((2, 1)))
    assert isinstance(found, ShapeTensor)
    assert found.shape == expected.shape


def test_mismatches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\], \[3\].* do not broadcast"):
        broadcast((2,), (3,))
    with pytest.raises(ValueError, match="cannot be multiplied"):
        matmul_shape((2, 3), (2, 3))
    with pytest.raises(ValueError, match="cannot be joined along axis 0"):
        torch.cat([new_shape_tensor((2, 3)), new_shape_tensor((2, 4))])  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="exp"):
        torch.exp(new_shape_tensor((2,)))  # type: ignore[arg-type]
