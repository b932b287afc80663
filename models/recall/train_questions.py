"""Train and export the model of question lists: ``python -m models.recall.train_questions --out DIR``.

A GPT-2 of four layers, trained from scratch on documents of ``models.recall.questions`` drawn as they are needed.  The
first layer finds the name that a token belongs to; the last two layers look up records and the list.  Attention is
supervised: beside the loss on answers a guide says where some queries should look, see `guide_rows`.
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
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from models.recall import questions as docs
from models.recall.documents import EOS, NAMES, TRAINING, make_rng
from models.recall.train import export, load_export, optimiser_groups, sinusoids

POSITIONS = 1152
#: Layers that look records up; the ones before look at neighbours.
LOOKUP_LAYERS = (2, 3)
LOOKUP_HEADS = (0, 1, 2)
#: Standard deviation of token embeddings at the start, and the last normalisation's gain, so that logits start small.
EMBEDDING = 0.3
#: Diagonal that values and outputs of the lookup layers start with.
COPY = 0.5

Model: TypeAlias = Any


@dataclass(frozen=True)
class Stage:
    """A stretch of training: tokens of prompt and answer, sequences a step, most steps, and the accuracy that ends it.

    cluster, quiet: weights of `Attention.cluster` and `Attention.quiet`.
    """

    length: int
    batch: int
    steps: int
    until: float = 1.1
    cluster: float = 0.0
    quiet: float = 0.0


STAGES: tuple[Stage, ...] = (
    Stage(128, 16, 1500, 0.99),
    Stage(256, 12, 400, 0.99),
    Stage(512, 8, 200, 0.99),
    Stage(512, 8, 300, cluster=0.5, quiet=0.03),
    Stage(1100, 3, 600, cluster=2.0, quiet=0.03),
)


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss beside answers. limit: largest attention score wanted."""

    guide: float = 0.3
    idle: float = 0.1
    scores: float = 3e-3
    limit: float = 28.0
    residual: float = 1e-2
    rms: float = 2.0


@dataclass(frozen=True)
class Rows:
    """Queries and where they should look: positions of queries and keys, for some heads of some layers."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    lookup: bool = False


def build_model(vocabulary: int, layers: int, width: int, heads: int, ffn: int) -> Model:
    """Build a fresh GPT-2; its position table holds fixed sinusoids in a quarter of its columns, and attention in the lookup
    layers starts as a copy of what it looks at."""
    eos = docs.TOKEN_IDS[EOS]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=POSITIONS,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=ffn,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.05,
            bos_token_id=eos,
            eos_token_id=eos,
        )
    )
    table = model.transformer.wpe.weight
    table.data.copy_(sinusoids(POSITIONS, width, width // 4, 0.6))
    table.requires_grad_(False)
    model.transformer.wte.weight.data.mul_(EMBEDDING / 0.05)
    model.transformer.ln_f.weight.data.fill_(EMBEDDING)
    for layer in LOOKUP_LAYERS:
        attention = model.transformer.h[layer].attn
        attention.c_attn.weight.data[:, 2 * width :] = COPY * torch.eye(width)
        attention.c_proj.weight.data.copy_(COPY * torch.eye(width))
    return model


def training_layout(rng: np.random.Generator, length: int) -> docs.Layout:
    """Return a layout of ``length`` tokens, answer included; questions, records, quotes and filler in random shares."""
    most = max(2, min(24, (length - 8) // 12))
    questions = int(rng.integers(2, most + 1))
    prompt = length - docs.ANSWER_TOKENS_EACH * questions
    room = prompt - 2 * questions - docs.LIST_TOKENS
    units = max(questions, int(room * rng.uniform(0.15, 0.9 if length < 256 else 0.4)) // docs.RECORD_TOKENS)
    extra = min(units, len(NAMES)) - questions
    quotes = int(extra * rng.uniform(0.0, 0.5))
    mixture = docs.Mixture(questions, questions + extra - quotes, quotes)
    filler = prompt - mixture.tokens
    # A gap that no sentence fits is left out.
    return docs.make_layout(rng, prompt if filler == 0 or filler >= docs.SHORTEST_SENTENCE else mixture.tokens, mixture)


def guide_rows(rng: np.random.Generator, layout: docs.Layout, idle: int) -> list[Rows]:
    """Return where queries should look.

    First layer: head 0 at the nearest name before, wherever that is the name a token belongs to; head h at the token h
    back.  Lookup layers, all heads: a question mark at the value of the record asked for, in quotes, list and answer; a
    value of the answer at what follows its name in the list.  Behind the first layer ``idle`` tokens with nothing to look
    up, all heads: at themselves.
    """
    kinds, records, count = layout.kinds, layout.records, layout.mixture.questions
    steps = len(kinds)
    names = np.nonzero(kinds == docs.K_NAME)[0]
    list_start = int(np.nonzero(kinds == docs.K_LIST)[0][0])
    members = np.nonzero(np.isin(kinds, (docs.K_VALUE, docs.K_QUESTION, docs.K_END)))[0]
    members = np.concatenate([members, names[names > list_start + 1]])
    owners = names[np.searchsorted(names, members) - 1]
    marks = np.nonzero(kinds == docs.K_QUESTION)[0]
    answers = layout.prompt + 1 + docs.ANSWER_TOKENS_EACH * np.arange(count)
    listed = list_start + 1 + 2 * np.arange(1, count + 1)
    looking = np.concatenate([marks, answers])
    found = np.concatenate([layout.places[records[marks - 1]], listed])
    still = np.sort(rng.permutation(steps)[:idle])
    near = np.sort(rng.permutation(steps - 4)[:idle] + 4)

    def rows(layers: tuple[int, ...], heads: tuple[int, ...], at: np.ndarray, to: np.ndarray, lookup: bool = False) -> Rows:
        return Rows(layers, heads, torch.from_numpy(at), torch.from_numpy(to), lookup)

    return [
        rows((0,), (0,), members, owners),
        *(rows((0,), (head,), near, near - head) for head in (1, 2, 3)),
        rows(LOOKUP_LAYERS, LOOKUP_HEADS, looking, found, True),
        rows(LOOKUP_LAYERS, (3,), still, still),
    ]


class Attention:
    """Queries and keys of every layer in the latest pass, each (batch, heads, steps, size)."""

    def __init__(self, model: Model) -> None:
        """Hook the projections of every layer of ``model``."""
        self.heads: int = model.config.num_attention_heads
        self.seen: list[tuple[Tensor, Tensor]] = []
        for block in model.transformer.h:
            block.attn.c_attn.register_forward_hook(self.collect)

    def collect(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        """Keep queries and keys."""
        width = output.shape[-1] // 3
        shape = (*output.shape[:2], self.heads, width // self.heads)
        self.seen.append(
            (output[..., :width].view(shape).transpose(1, 2), output[..., width : 2 * width].view(shape).transpose(1, 2))
        )

    def guide(self, rows: Rows) -> Tensor:
        """Return the mean cross entropy of the attention weights of ``rows``."""
        total = torch.zeros(())
        for layer in rows.layers:
            q, k = (x[:, rows.heads] for x in self.seen[layer])
            scores = q[:, :, rows.queries] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            later = torch.arange(k.shape[2])[None] > rows.queries[:, None]
            scores = scores.masked_fill(later, float("-inf"))
            wanted = rows.keys.expand(scores.shape[:-1])
            total = total + functional.cross_entropy(scores.flatten(0, 2), wanted.flatten())
        return total / len(rows.layers)

    def cluster(self, rng: np.random.Generator, rows: Rows, size: int, kept: float, alpha: float) -> Tensor:
        """Return the cross entropy of which cluster holds the key looked up, among clusters of ``size`` neighbours of a
        random share ``kept`` of the tokens; a cluster's score is q . (alpha max + (1 - alpha) min) over its keys.
        """
        total = torch.zeros(())
        steps = self.seen[0][0].shape[2]
        needed = np.unique(rows.keys.numpy())
        count = max(len(needed), int(steps * kept)) // size * size
        if count < 2 * size or count < len(needed):
            return total
        others = rng.permutation(np.setdiff1d(np.arange(steps), needed))[: count - len(needed)]
        stay = np.sort(np.concatenate([needed, others]))
        wanted = torch.from_numpy(np.searchsorted(stay, rows.keys.numpy()) // size)
        last = torch.from_numpy(stay[size - 1 :: size].copy())
        for layer in rows.layers:
            q, k = (x[:, rows.heads] for x in self.seen[layer])
            groups = k[:, :, stay].reshape(*k.shape[:2], -1, size, k.shape[3])
            middle = alpha * groups.amax(3) + (1 - alpha) * groups.amin(3)
            scores = q[:, :, rows.queries] @ middle.transpose(-1, -2) / q.shape[-1] ** 0.5
            later = last[None] > rows.queries[:, None]
            later[torch.arange(len(wanted)), wanted] = False
            scores = scores.masked_fill(later, float("-inf"))
            total = total + functional.cross_entropy(scores.flatten(0, 2), wanted.expand(scores.shape[:-1]).flatten())
        return total / len(rows.layers)

    def quiet(self, layout: docs.Layout) -> Tensor:
        """Return the mean squared norm over sqrt(size) of the lookup heads' keys of tokens that are never looked up."""
        start = int(np.nonzero(layout.kinds == docs.K_LIST)[0][0])
        listed = start + 1 + 2 * np.arange(1, layout.mixture.questions + 1)
        never = np.setdiff1d(np.arange(len(layout.kinds)), np.concatenate([layout.places, listed]))
        total = torch.zeros(())
        for layer in LOOKUP_LAYERS:
            k = self.seen[layer][1][:, LOOKUP_HEADS]
            total = total + k[:, :, never].square().sum(-1).mean() / k.shape[-1] ** 0.5
        return total

    def excess(self, limit: float) -> Tensor:
        """Return the mean squared excess of queries' and keys' squared norms over sqrt(size) times ``limit``: a score is
        at most |q| |k| / sqrt(size)."""
        total = torch.zeros(())
        for pair in self.seen:
            for x in pair:
                total = total + torch.relu(x.square().sum(-1) / x.shape[-1] ** 0.5 - limit).square().mean()
        return total


def residual_excess(states: tuple[Tensor, ...], limit: float) -> Tensor:
    """Return the mean squared excess of the residual stream's mean square over ``limit``, summed over layers; without it
    the first layers write so much that a token is hard to recognise behind them."""
    total = torch.zeros(())
    for x in states:
        total = total + torch.relu(x.square().mean(-1) - limit).square().mean()
    return total


def answer_targets(layout: docs.Layout, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions whose next token bears loss, and those tokens (batch, positions): quoted values and the whole
    answer."""
    quoted = np.nonzero((layout.kinds[:-1] == docs.K_QUESTION) & (layout.kinds[1:] == docs.K_VALUE))[0]
    at = np.union1d(quoted[quoted < layout.prompt], np.arange(layout.prompt - 1, len(layout.kinds) - 1))
    where = torch.from_numpy(at)
    return where, ids[:, where + 1]


def train(
    model: Model, stages: tuple[Stage, ...], seed: int, peak: float, decay: float, weights: Weights, decline: bool = True
) -> Iterator[dict[str, float]]:
    """Train through ``stages``; yields at the end of each with its last running accuracy and the time used.

    The rate warms up over 100 steps, is half the peak from 512 tokens on and a cosine down to zero in the last stage.
    """
    rng = make_rng(seed, TRAINING)
    optimiser = torch.optim.AdamW(optimiser_groups(model, decay), lr=peak, betas=(0.9, 0.98))
    attention = Attention(model)
    table = model.transformer.wpe.weight
    start, cpu_start, step, seen = time.perf_counter(), time.process_time(), 0, 0
    model.train()
    for number, stage in enumerate(stages):
        right_mean = loss_mean = 0.0
        for stage_step in range(stage.steps):
            rate = peak * min(1.0, (step + 1) / 100) * (0.5 if stage.length >= 512 else 1.0)
            if decline and number == len(stages) - 1:
                rate *= 0.5 * (1 + math.cos(math.pi * stage_step / stage.steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            layout = training_layout(rng, stage.length)
            ids = torch.from_numpy(docs.draw(rng, layout, stage.batch))
            where, wanted = answer_targets(layout, ids)
            steps = ids.shape[1]
            offset = int(rng.integers(0, POSITIONS - steps + 1))
            shifted = model.transformer.wte(ids) + (table[offset : offset + steps] - table[:steps])
            output = model.transformer(inputs_embeds=shifted, use_cache=False, output_hidden_states=True)
            logits = model.lm_head(output.last_hidden_state[:, where])
            residual = residual_excess(output.hidden_states[1:-1], weights.rms)
            loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            rows = guide_rows(rng, layout, min(48, steps // 4))
            guides = [attention.guide(part) for part in rows]
            lookup = next(guide for part, guide in zip(rows, guides, strict=True) if part.lookup)
            near = guides[0] + sum(guides[1:4]) / 3
            excess = attention.excess(weights.limit)
            cluster = torch.zeros(())
            if stage.cluster:
                size, kept = int(rng.choice((8, 16))), float(rng.uniform(0.3, 0.6))
                cluster = attention.cluster(rng, next(part for part in rows if part.lookup), size, kept, 0.6)
            quiet = attention.quiet(layout)
            attention.seen.clear()
            total = loss + weights.guide * (near + lookup) + weights.idle * guides[-1] + weights.scores * excess
            total = total + weights.residual * residual + stage.quiet * quiet
            optimiser.zero_grad(set_to_none=True)
            (total + stage.cluster * cluster).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step, seen = step + 1, seen + ids.numel()
            right = (logits.argmax(-1) == wanted).float().mean().item()
            weight = 1 / min(stage_step + 1, 20)
            right_mean += weight * (right - right_mean)
            loss_mean += weight * (loss.item() - loss_mean)
            if stage_step % 10 == 0:
                shown = {
                    "loss": loss_mean,
                    "near": near.item(),
                    "lookup": lookup.item(),
                    "cluster": cluster.item(),
                    "quiet": quiet.item(),
                    "excess": excess.item(),
                    "right": right_mean,
                }
                used = time.perf_counter() - start
                text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
                print(f"{used:7.1f} s  tokens {stage.length:5d}  step {step:5d}  {text}", flush=True)
            if stage_step >= 50 and right_mean >= stage.until:
                break
        yield {
            "length": float(stage.length),
            "steps": float(step),
            "tokens_seen": float(seen),
            "loss": loss_mean,
            "right": right_mean,
            "wall_seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--limit", type=float, default=28.0, help="largest attention score wanted")
    parser.add_argument("--finish", type=Path, metavar="DIR", help="only the last stage, of the model exported there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.finish:
        model = load_export("gpt2", args.finish)
    else:
        model = build_model(len(docs.VOCABULARY), args.layers, args.width, args.heads, args.ffn)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    weights = Weights(limit=args.limit)
    log = []
    for entry in train(model, STAGES[-1:] if args.finish else STAGES, args.seed, args.rate, args.decay, weights):
        log.append(entry)
        print(f"stage done: {json.dumps(entry)}", flush=True)
        export(model, args.out, docs.TOKEN_IDS, docs.ANSWER_TOKENS_EACH * docs.MAX_QUESTIONS)
        record = {"arguments": {n: v for n, v in vars(args).items() if n not in ("out", "finish")}, "stages": log}
        (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
