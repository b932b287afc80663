"""What holds tensors of the protocols shows their shapes where it is printed, never a value: messages and logs are read."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re

import torch

import protocols
from protocols.masked.veiled import Veiled
from protocols.value import OutputShare

TENSORS = re.compile(r"\b(Tensor|Words|Wide)\b(?!\])")


def test_dataclasses_with_tensors_have_a_representation_of_their_own_or_none() -> None:
    shown = []
    for found in pkgutil.walk_packages(protocols.__path__, "protocols."):
        module = importlib.import_module(found.name)
        for name, kind in inspect.getmembers(module, dataclasses.is_dataclass):
            made_by_dataclass = inspect.isclass(kind) and hasattr(kind.__repr__, "__wrapped__")
            if made_by_dataclass and any(TENSORS.search(str(f.type)) and f.repr for f in dataclasses.fields(kind)):
                shown.append(f"{found.name}.{name}")
    assert not shown


def test_a_veiled_sharing_shows_its_shape() -> None:
    x = torch.tensor([[123456789, 1]])
    assert repr(Veiled(x, 40, 14, lambda: x)) == "Veiled(shape=[1, 2], ring=2^40, fraction bits=14)"
    assert "123456789" not in repr(OutputShare(x, 40, 14))
