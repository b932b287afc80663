"""The XOR of many words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpc.device import node
from mpc.device.deferred import Deferred, deferred, of
from mpc.device.node import Node

LANES = 128


def folded(x: Tensor) -> int | Tensor:
    """Return the XOR of all elements, int64: a number at the host; on a device it stays there, a tensor of one element."""
    if x.device.type == "cpu" and not isinstance(x, Deferred):
        return int(np.bitwise_xor.reduce(x.numpy(), axis=None))
    flat = deferred(x).reshape(-1)
    missing = -flat.numel() % LANES
    if missing:
        flat = torch.cat([flat, Deferred(node.constant(0, (missing,), flat.dtype, flat.device))])
    by_lane = Node("fold", (of(flat.reshape(-1, LANES)),), (1, LANES), x.dtype, x.device, (0,))
    return Deferred(node.reshaped(Node("fold", (by_lane,), (1, 1), x.dtype, x.device, (1,)), ()))
