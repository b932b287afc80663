"""The token sequences that a checkpoint is calibrated on: a text of the user's, or a varied one of this package's.

A text is cut into documents at lines of `---`, and these into sequences that fit the model's positions; the built-in one has
prose, code, numbers, tables, a chat, lists and several scripts, about 1 000 tokens. Each sequence begins with the
checkpoint's first token where it has one: large values sit at the first token more than anywhere else. Without a tokenizer,
token ids that are spread over the vocabulary take the built-in text's place; a text of the user's needs one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from models.checkpoint import Checkpoint
from models.encoder_architecture import EncoderArchitecture
from mpc.errors import CheckpointError, ConfigurationError

BUILT_IN = Path(__file__).with_name("text.txt")
SEPARATOR = "\n---\n"
LONGEST = 256
SPREAD = (4, 256)  # sequences of random ids, and their length
MOST_TOKENS = 1 << 16


def read_text(file: Path | None, checkpoint: Checkpoint) -> str | None:
    """Return the text, None for the built-in one where there is no tokenizer to read it. Raises `ConfigurationError` naming
    the file, and `CheckpointError` for a text of the user's that no tokenizer reads."""
    try:
        _ = checkpoint.tokenizer
    except CheckpointError:
        if file is not None:
            raise
        return None
    if file is None:
        return BUILT_IN.read_text(encoding="utf-8")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--text {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--text {file} is not a UTF-8 text file") from None
    if not text.strip():
        raise ConfigurationError(f"--text {file} is empty; give a text like those that the model will read")
    return text


def text_digest(text: str | None) -> str:
    """Return the SHA-256 of the text; of no text, that of the empty one, which no text is."""
    return hashlib.sha256((text or "").encode()).hexdigest()


def sequences(checkpoint: Checkpoint, text: str | None) -> list[list[int]]:
    """Return token ids, [at most 256 or the model's positions] each; without a text, ids spread over the vocabulary."""
    a = checkpoint.description
    room = min(LONGEST, a.positions)
    if text is None:
        count, length = SPREAD[0], min(SPREAD[1], a.positions)
        generator = torch.Generator().manual_seed(0)
        found = torch.randint(0, a.vocabulary, (count, length), generator=generator)
        if isinstance(a, EncoderArchitecture):  # no text has padding of its own
            found[found == a.pad] = (a.pad + 1) % a.vocabulary
        return [_begun(ids, a.bos, room) for ids in found.tolist()]
    out: list[list[int]] = []
    for document in text.split(SEPARATOR):
        ids = [token for token in checkpoint.tokenizer.encode(document) if token < a.vocabulary]
        out += [_begun(ids[n : n + room], a.bos, room) for n in range(0, len(ids), room)]
    if not out:
        raise ConfigurationError("the calibration text has no tokens; give a text like those that the model will read")
    if sum(map(len, out)) > MOST_TOKENS:
        raise ConfigurationError(f"the calibration text has {sum(map(len, out))} tokens, at most {MOST_TOKENS} are used")
    return out


def _begun(ids: list[int], bos: int | None, room: int) -> list[int]:
    """Return ids with the first token in front, where there is one that is not there already."""
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids][:room]
