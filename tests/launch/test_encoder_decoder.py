"""`mpcache generate` with an encoder-decoder, as with any decoder: processes, a prompt's text, plaintext's tokens."""

from __future__ import annotations

import json
from pathlib import Path

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from tests.launch.conftest import Command
from tests.models import random_encoder_decoders as checkpoints
from tests.models.random_encoders import letters

PROMPT = "abcab"


def test_generate(command: Command, tmp_path: Path) -> None:
    checkpoints.save("t5-gated-untied", tmp_path)
    letters(tmp_path)
    found = command("generate", "--model", tmp_path, "--prompt", PROMPT, "--max-new-tokens", "2", "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    checkpoint = load_checkpoint(tmp_path)
    ids = checkpoint.tokenizer.encode(PROMPT)
    tokens = generate_plain(checkpoint, ids, GenerationPlan(len(ids), 2))
    assert (report["tokens"], report["prompt_tokens"]) == (tokens, len(ids))
    assert report["text"] == checkpoint.tokenizer.decode(tokens)
    refused = command("generate", "--model", tmp_path, "--prompt", PROMPT, "--policy", "h2o:budget=0.5")
    assert refused.code == 2
    assert "'t5' reads its prompt with an encoder" in refused.err
