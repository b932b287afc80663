"""What a client may get: how a decoder's tokens are chosen, and what an encoder gives. Names alone, so that commands which
only read permissions load no tensors.
"""

from __future__ import annotations

from typing import Literal, get_args

Decoding = Literal["greedy", "sample", "logits"]
Output = Literal["mean", "cls", "hidden", "pooled", "classes", "labels", "words"]

OUTPUTS: dict[Output, str] = {
    "mean": "the mean of a text's rows, an embedding [D]",
    "cls": "the first row, an embedding [D]",
    "hidden": "all rows [T, D]",
    "pooled": "the first row behind the pooler [D]",
    "classes": "the logits of a text's classes",
    "labels": "the logits of each token's labels [T, labels]",
    "words": "the logits of the word at one secret place [V]",
}
assert tuple(OUTPUTS) == get_args(Output)
