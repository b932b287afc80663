"""Train and export the recall models: ``python -m models.recall.train --family gpt2|llama --out DIR``.

Both are ordinary Hugging Face models of two layers, trained from scratch on documents drawn as they are needed.
A training sequence is a document followed by many questions, of which the first sees exactly what a deployed
prompt holds; only answers carry loss.  The sequences grow from 64 to 1,152 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from models.recall import documents as docs

MAX_POSITIONS = 1152
IGNORE = -100
#: Weight of the squared excess of queries' and keys' norms.
SCORE_WEIGHT = 1e-3

#: A ``GPT2LMHeadModel`` or a ``LlamaForCausalLM``; transformers carries no types.
Model: TypeAlias = Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``kv_heads`` matters to LLaMA only."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 256


@dataclass(frozen=True)
class Stage:
    """A stretch of training: sequence length, sequences a step, most steps, and the accuracy that ends it early."""

    length: int
    batch: int
    steps: int
    until: float = 1.1
    guide: float = 0.0


STAGES: tuple[Stage, ...] = (
    Stage(64, 128, 3000, 0.97, 0.3),
    Stage(128, 64, 1000, 0.99),
    Stage(256, 32, 1000, 0.99),
    Stage(512, 16, 600, 0.99),
    Stage(MAX_POSITIONS, 8, 600),
)
#: Afterwards: the same task with attention scores held small, for fixed-point arithmetic.
FINISH_STEPS = 800


def sinusoids(positions: int, width: int, used: int, amplitude: float) -> torch.Tensor:
    """Return position embeddings (positions, width): sinusoids of periods 4 to 2 * positions in the first ``used``
    columns."""
    pairs = used // 2
    periods = 4.0 * (2 * positions / 4.0) ** (torch.arange(pairs, dtype=torch.float64) / (pairs - 1))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * (2 * math.pi / periods)[None, :]
    table = torch.zeros(positions, width, dtype=torch.float64)
    table[:, 0:used:2] = amplitude * torch.sin(angles)
    table[:, 1:used:2] = amplitude * torch.cos(angles)
    return table.float()


def build_model(family: str, shape: Shape) -> Model:
    """Build a fresh model; GPT-2's position table holds fixed sinusoids in a quarter of its columns."""
    eos = docs.TOKEN_IDS[docs.EOS]
    if family == "gpt2":
        gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(docs.VOCABULARY),
                n_positions=MAX_POSITIONS,
                n_embd=shape.width,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_inner=shape.ffn,
                activation_function="gelu_new",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.05,
                bos_token_id=eos,
                eos_token_id=eos,
            )
        )
        table = gpt2.transformer.wpe.weight
        table.data.copy_(sinusoids(MAX_POSITIONS, shape.width, shape.width // 4, 0.12))
        table.requires_grad_(False)
        return gpt2
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(docs.VOCABULARY),
            hidden_size=shape.width,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.width // shape.heads,
            hidden_act="silu",
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=False,
            initializer_range=0.05,
            bos_token_id=eos,
            eos_token_id=eos,
        )
    )


def build_tokenizer(token_ids: dict[str, int]) -> Tokenizer:
    """Return a word-level tokenizer over a fixed vocabulary: words, punctuation and single digits."""
    tokenizer = Tokenizer(WordLevel(dict(token_ids), unk_token=docs.UNK))
    tokenizer.add_special_tokens([docs.UNK, docs.EOS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    # Every token after the first is preceded by one space.
    spaced = decoders.Replace(Regex(r"^"), " ")
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


@dataclass(frozen=True)
class Batch:
    """Training sequences of one layout.

    ids, targets: (batch, steps), targets being ids of answers and IGNORE elsewhere; owners: (steps,), the position
    of the name a token belongs to, -1 where there is none; sources: (answer tokens of the batch,), the position
    in the document that each answer token is copied from.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    sources: torch.Tensor


def make_batch(rng: np.random.Generator, length: int, batch: int) -> Batch:
    """Return sequences of at most ``length`` tokens.

    A document takes a random 40 to 95 % of the sequence; the rest asks about distinct records of it.
    """
    header = int(rng.integers(1, docs.RECORD_TOKENS + 1))
    record, ask = docs.RECORD_TOKENS, docs.QUESTION_TOKENS + docs.ANSWER_TOKENS
    room = length - header
    records = int(min(max(room * rng.uniform(0.4, 0.95) // record, 2), (room - ask) // record))
    questions = min((room - records * record) // ask, records)

    first_name, first_digit = docs.TOKEN_IDS[docs.NAMES[0]], docs.TOKEN_IDS[docs.DIGITS[0]]
    names = rng.permuted(np.tile(np.arange(len(docs.NAMES)), (batch, 1)), axis=1)[:, :records] + first_name
    values = rng.integers(0, len(docs.DIGITS), size=(batch, records, docs.VALUE_TOKENS)) + first_digit

    body = np.empty((batch, records, record), dtype=np.int64)
    body[:, :, 0] = names
    body[:, :, 1] = docs.TOKEN_IDS[docs.COLON]
    body[:, :, 2:-1] = values
    body[:, :, -1] = docs.TOKEN_IDS[docs.SEMICOLON]

    chosen = rng.permuted(np.tile(np.arange(records), (batch, 1)), axis=1)[:, :questions]
    asked = np.empty((batch, questions, ask), dtype=np.int64)
    asked[:, :, 0] = docs.TOKEN_IDS[docs.QUESTION]
    asked[:, :, 1] = np.take_along_axis(names, chosen, axis=1)
    asked[:, :, 2] = docs.TOKEN_IDS[docs.COLON]
    asked[:, :, 3:-1] = np.take_along_axis(values, chosen[:, :, None], axis=1)
    asked[:, :, -1] = docs.TOKEN_IDS[docs.EOS]
    targets = asked.copy()
    targets[:, :, : docs.QUESTION_TOKENS] = IGNORE

    head = np.tile(np.array(docs.encode(docs.HEADERS[header])), (batch, 1))
    before = header + records * record
    ids = np.concatenate([head, body.reshape(batch, -1), asked.reshape(batch, -1)], axis=1)
    wanted = np.concatenate([np.full((batch, before), IGNORE), targets.reshape(batch, -1)], axis=1)

    owners = np.full(ids.shape[1], -1)
    for first, count, stride, name in ((header, records, record, 0), (before, questions, ask, 1)):
        for start in range(first, first + count * stride, stride):
            owners[start + name + 1 : start + name + 1 + docs.ANSWER_TOKENS] = start + name
    sources = header + chosen[:, :, None] * record + 2 + np.arange(docs.ANSWER_TOKENS)
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(wanted), torch.from_numpy(owners), torch.from_numpy(sources.reshape(-1))
    )


def forward_answers(
    model: Model, batch: Batch, offset: int, guided: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logits (answer tokens, vocabulary) where an answer is due, the ids (answer tokens,) due, and the guide's
    loss.

    ``offset`` shifts GPT-2's positions, so that short sequences meet the whole position table.
    """
    ids = batch.ids
    due = batch.targets[:, 1:] != IGNORE
    if isinstance(model, GPT2LMHeadModel):
        table = model.transformer.wpe.weight
        steps = ids.shape[1]
        shifted = model.transformer.wte(ids) + (table[offset : offset + steps] - table[:steps])
        output = model.transformer(inputs_embeds=shifted, use_cache=False, output_attentions=guided)
    else:
        output = model.model(input_ids=ids, use_cache=False, output_attentions=guided)
    guide = guide_loss(output.attentions, batch, due) if guided else torch.zeros(())
    return model.lm_head(output.last_hidden_state[:, :-1][due]), batch.targets[:, 1:][due], guide


def guide_loss(attentions: tuple[torch.Tensor, ...], batch: Batch, due: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of attention weights, each (batch, heads, steps, steps), with where a reader would look.

    In the first layer head 0 looks at the name its token belongs to, the others 1, 2, ... tokens back; in the last
    layer every head of an answering token looks at the token to copy.  ``due``: (batch, steps - 1).
    """
    first, last = attentions[0], attentions[-1]
    steps = batch.ids.shape[1]
    at = torch.nonzero(batch.owners >= 0)[:, 0]
    loss = -torch.log(first[:, 0, at, batch.owners[at]] + 1e-9).mean()
    for head in range(1, first.shape[1]):
        later = torch.arange(head, steps)
        loss = loss - torch.log(first[:, head, later, later - head] + 1e-9).mean()
    loss = loss / first.shape[1]
    answering = last[:, :, :-1].transpose(1, 2)[due]  # (answer tokens, heads, steps)
    picked = answering.gather(2, batch.sources[:, None, None].expand(-1, answering.shape[1], 1))
    return loss - torch.log(picked + 1e-9).mean()


class ScoreLimit:
    """Keeps attention scores small: collects queries and keys, and charges those whose norms allow large scores.

    A score is at most |q| |k| / sqrt(size), so both norms squared over sqrt(size) are held near ``limit``.
    """

    def __init__(self, model: Model, limit: float) -> None:
        """Hook the projections of every layer of ``model``."""
        self.limit = limit
        self.size: int = model.config.hidden_size // model.config.num_attention_heads
        self.width: int = model.config.hidden_size
        self.seen: list[torch.Tensor] = []
        for name, module in model.named_modules():
            if name.endswith((".attn.c_attn", ".q_proj", ".k_proj")):
                module.register_forward_hook(self.collect)

    def collect(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        """Keep queries and keys, each (batch, steps, heads, size); GPT-2's projection also holds the values."""
        vectors = output[..., : 2 * self.width]
        self.seen.append(vectors.view(*vectors.shape[:2], -1, self.size))

    def loss(self) -> torch.Tensor:
        """Return the mean squared excess over the limit in this pass, summed over the projections; forgets the pass."""
        total = torch.zeros(())
        for vectors in self.seen:
            excess = torch.relu(vectors.square().sum(-1) / self.size**0.5 - self.limit)
            total = total + excess.square().mean()
        self.seen.clear()
        return total


def optimiser_groups(model: Model, decay: float) -> list[dict[str, object]]:
    """Return the parameters in two groups: weight decay for matrices, none for gains and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def learning_rate(step: int, stage_step: int, stage: Stage, last: bool, peak: float) -> float:
    """Return the learning rate: warm-up over the first 200 steps, half the peak from 512 tokens on, a cosine down to zero
    in the last stage."""
    rate = peak * min(1.0, (step + 1) / 200)
    if stage.length >= 512:
        rate *= 0.5
    if last:
        rate *= 0.5 * (1 + math.cos(math.pi * stage_step / stage.steps))
    return rate


def train(
    model: Model, stages: tuple[Stage, ...], seed: int, peak: float, decay: float, limit: float | None
) -> Iterator[tuple[Stage, dict[str, float]]]:
    """Train through ``stages``, with scores held near ``limit`` if there is one.

    Yields at the end of each stage with its last running accuracy and the time used.
    """
    rng = docs.make_rng(seed, docs.TRAINING)
    optimiser = torch.optim.AdamW(optimiser_groups(model, decay), lr=peak, betas=(0.9, 0.98))
    scores = None if limit is None else ScoreLimit(model, limit)
    start, cpu_start, step, seen = time.perf_counter(), time.process_time(), 0, 0
    model.train()
    for number, stage in enumerate(stages):
        accuracy, loss_mean = 0.0, 0.0
        model.set_attn_implementation("eager" if stage.guide > 0 else "sdpa")
        for stage_step in range(stage.steps):
            rate = learning_rate(step, stage_step, stage, number == len(stages) - 1, peak)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch = make_batch(rng, stage.length, stage.batch)
            offset = int(rng.integers(0, MAX_POSITIONS - batch.ids.shape[1] + 1))
            logits, wanted, guide = forward_answers(model, batch, offset, stage.guide > 0)
            loss = torch.nn.functional.cross_entropy(logits, wanted)
            optimiser.zero_grad(set_to_none=True)
            excess = torch.zeros(()) if scores is None else scores.loss()
            (loss + stage.guide * guide + SCORE_WEIGHT * excess).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            seen += batch.ids.numel()
            # Running share of answers that are right in every token, over about the last 20 steps.
            right = (logits.argmax(-1) == wanted).view(-1, docs.ANSWER_TOKENS).all(-1).float().mean().item()
            weight = 1 / min(stage_step + 1, 20)
            accuracy += weight * (right - accuracy)
            loss_mean += weight * (loss.item() - loss_mean)
            if stage_step % 50 == 0:
                used = time.perf_counter() - start
                parts = f"loss {loss_mean:.4f}  guide {guide.item():.4f}  excess {excess.item():.3f}"
                where = f"{used:7.1f} s  tokens {stage.length:5d}  step {step:5d}"
                print(f"{where}  {parts}  exact {accuracy:.4f}", flush=True)
            if stage_step >= 50 and accuracy >= stage.until:
                break
        yield (
            stage,
            {
                "length": float(stage.length),
                "steps": float(step),
                "tokens_seen": float(seen),
                "loss": loss_mean,
                "exact": accuracy,
                "wall_seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu_start,
            },
        )


def export(model: Model, out: Path, token_ids: dict[str, int], answer_tokens: int) -> None:
    """Write config.json, model.safetensors (float16), generation_config.json and the tokenizer's files to ``out``.

    ``answer_tokens``: the most tokens that ``generate`` of transformers adds by default.
    """
    out.mkdir(parents=True, exist_ok=True)
    eos = token_ids[docs.EOS]
    rounded = type(model)(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded = rounded.to(torch.float16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=eos, eos_token_id=eos, pad_token_id=eos, do_sample=False, max_new_tokens=answer_tokens
    )
    rounded.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(token_ids),
        unk_token=docs.UNK,
        eos_token=docs.EOS,
        pad_token=docs.EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def load_export(family: str, path: Path) -> Model:
    """Return the model exported to ``path``, in float32 and ready to be trained on."""
    kind = GPT2LMHeadModel if family == "gpt2" else LlamaForCausalLM
    model = kind.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    if family == "gpt2":
        model.transformer.wpe.weight.requires_grad_(False)
    return model


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=("gpt2", "llama"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--width", type=int, default=Shape.width)
    parser.add_argument("--heads", type=int, default=Shape.heads)
    parser.add_argument("--kv-heads", type=int, default=Shape.kv_heads)
    parser.add_argument("--ffn", type=int, default=Shape.ffn)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--limit", type=float, default=32.0, help="largest attention score wanted")
    parser.add_argument("--finish", type=Path, metavar="DIR", help="only finish the model exported there")
    parser.add_argument("--finish-steps", type=int, default=FINISH_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.finish:
        model = load_export(args.family, args.finish)
        log = json.loads((args.finish / "training.json").read_text())["stages"]
    else:
        model = build_model(args.family, Shape(args.layers, args.width, args.heads, args.kv_heads, args.ffn))
        log = []
    print(f"{args.family}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    finish = (Stage(MAX_POSITIONS, 2, args.finish_steps),)
    parts: list[tuple[tuple[Stage, ...], int, float | None]] = [(finish, args.seed + 1, args.limit)]
    if not args.finish:
        parts.insert(0, (STAGES, args.seed, None))
    for stages, seed, limit in parts:
        for stage, entry in train(model, stages, seed, args.rate, args.decay, limit):
            log.append(entry)
            print(f"stage of {stage.length} tokens done: {json.dumps(entry)}", flush=True)
            export(model, args.out, docs.TOKEN_IDS, docs.ANSWER_TOKENS)
            hidden = ("out", "finish")
            arguments = {name: value for name, value in vars(args).items() if name not in hidden}
            record = {"arguments": arguments, "stages": log}
            (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
