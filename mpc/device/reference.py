"""A node as operations of torch: what a kernel that is made of it must give, on any device."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpc.device.node import Node, Recipe
from mpc.device_packing import pack_there, unpack_there

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "min": torch.minimum,
    "max": torch.maximum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "neg": operator.neg,
    "invert": operator.invert,
    "where": torch.where,
}


def view(node: Node | Recipe, x: Tensor) -> Tensor:
    """Return what an operation that moves elements makes of a tensor; without a copy but for some of "reshape"."""
    if node.op == "permute":
        return x.permute(node.attrs)
    if node.op == "expand":
        return x.expand(node.shape)
    if node.op == "slice":
        starts, steps = node.attrs
        ends = [a + (n - 1) * s + 1 if n else a for a, n, s in zip(starts, node.shape, steps, strict=True)]
        return x[tuple(slice(a, b, s) for a, b, s in zip(starts, ends, steps, strict=True))]
    return x.reshape(node.shape)


def _folded(x: Tensor, dim: int) -> Tensor:
    out = x.narrow(dim, 0, 1)
    for i in range(1, x.shape[dim]):
        out = out ^ x.narrow(dim, i, 1)
    return out


def at_host(recipe: Recipe) -> Tensor:
    """Return what the host knows of a node."""
    return recipe.leaf() if recipe.leaf is not None else computed(recipe, [at_host(a) for a in recipe.args], recipe.device)


def computed(node: Node | Recipe, args: list[Tensor], device: torch.device) -> Tensor:
    """Return a node's elements, from those of its arguments."""
    op = node.op
    if op in ("axes", "reshape", "permute", "expand", "slice"):
        return view(node, args[0])
    if op == "constant":
        return torch.full(node.shape, node.attrs[0], dtype=node.dtype, device=device)
    if op == "cast":
        return args[0].to(node.dtype)
    if op == "cat":
        return torch.cat(args, node.attrs[0])
    if op == "gather":
        return args[0].gather(node.attrs[0], args[1])
    if op == "take":
        return args[0].take(args[1])
    if op == "sum":
        return args[0].sum(node.attrs[0], keepdim=True)
    if op == "fold":
        return _folded(args[0], node.attrs[0])
    if op == "unpack":
        return unpack_there(args[0], node.attrs[0], node.shape)
    if op == "pack":
        return pack_there(args[0], node.attrs[0])
    left, *right = args
    found: Tensor = _OPERATORS[op](left, *right)
    return found.to(node.dtype) if found.dtype != node.dtype else found
