"""Measure a recall model in plaintext: ``python -m models.recall.evaluate --model DIR --lengths 256 512 1024``.

An answer counts when every digit is right under greedy decoding.  Greedy decoding gives the right answer exactly
when each answer token is the largest logit after the right tokens before it, so one pass over prompt and answer
decides; ``--generate`` decodes step by step instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from models.recall import documents as docs


def load_model(path: Path) -> Any:
    """Return the exported model in float32 (its float16 weights widened), ready for evaluation."""
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    return model.eval()


def encode_cases(tokenizer: Tokenizer, cases: list[docs.Case]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompt ids (cases, length) and answer ids with <eos> (cases, ANSWER_TOKENS)."""
    prompts = [tokenizer.encode(case.prompt).ids for case in cases]
    answers = [tokenizer.encode(f"{case.answer} {docs.EOS}").ids for case in cases]
    return torch.tensor(prompts), torch.tensor(answers)


@torch.no_grad()
def measure(
    model: Any, tokenizer: Tokenizer, length: int, cases: list[docs.Case], generate: bool = False
) -> dict[str, float]:
    """Return the shares of questions answered right at one prompt length: digits, and digits with <eos> after them."""
    questions = len(cases)
    rows = max(1, 8192 // length)
    right: list[torch.Tensor] = []
    margins: list[torch.Tensor] = []
    for start in range(0, questions, rows):
        prompts, answers = encode_cases(tokenizer, cases[start : start + rows])
        if generate:
            given = model.generate(prompts, max_new_tokens=docs.ANSWER_TOKENS, do_sample=False)[:, length:]
            padding = docs.ANSWER_TOKENS - given.shape[1]
            right.append(torch.nn.functional.pad(given, (0, padding), value=-1) == answers)
            continue
        ids = torch.cat([prompts, answers[:, :-1]], dim=1)
        logits = model(input_ids=ids, logits_to_keep=docs.ANSWER_TOKENS).logits
        right.append(logits.argmax(-1) == answers)
        top = logits.topk(2, dim=-1).values
        margins.append((top[..., 0] - top[..., 1]).flatten())
    hits = torch.cat(right)
    digits = hits[:, : docs.VALUE_TOKENS].all(-1).float()
    result = {
        "length": float(length),
        "questions": float(questions),
        "exact": digits.mean().item(),
        "exact_with_eos": hits.all(-1).float().mean().item(),
        "first_digit": hits[:, 0].float().mean().item(),
    }
    if margins:
        result["margin_1_percent"] = torch.cat(margins).quantile(0.01).item()
    return result


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to x (batch, heads, steps, size); cos and sin are (batch, steps, size)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]


def largest_score(model: Any, queries: torch.Tensor, keys: torch.Tensor) -> tuple[float, float]:
    """Return the largest |score| after scaling, over causal pairs and over all pairs.

    queries: (batch, steps, heads * size), keys: (batch, steps, kv heads * size), before rotary positions.
    """
    heads = model.config.num_attention_heads
    batch, steps, width = queries.shape
    size = width // heads
    q = queries.view(batch, steps, heads, size).transpose(1, 2)
    k = keys.view(batch, steps, -1, size).transpose(1, 2)
    if model.config.model_type == "llama":
        cos, sin = model.model.rotary_emb(q, torch.arange(steps)[None])
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    scores = (q @ k.transpose(-1, -2) / size**0.5).abs()
    return scores.tril().max().item(), scores.max().item()


@torch.no_grad()
def magnitudes(model: Any, tokenizer: Tokenizer, length: int, questions: int, seed: int) -> dict[str, float]:
    """Return the largest absolute values on held-out prompts: residual stream, attention scores, logits, any module's
    output."""
    found: dict[str, float] = {}
    halves: dict[str, torch.Tensor] = {}

    def note(name: str, value: float) -> None:
        found[name] = max(found.get(name, 0.0), value)

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if not isinstance(value, torch.Tensor):
                return
            note("module_output", value.abs().max().item())
            kind = name.rsplit(".", 1)[-1]
            if kind == "q_proj":
                halves["q"] = value
            elif kind == "k_proj" or (kind == "c_attn" and model.config.model_type == "gpt2"):
                width = model.config.hidden_size
                fused = kind == "c_attn"
                queries = value[..., :width] if fused else halves["q"]
                keys = value[..., width : 2 * width] if fused else value
                causal, every = largest_score(model, queries, keys)
                note("score", causal)
                note("score_all_pairs", every)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    cases = docs.evaluation_cases(length, questions, seed)
    rows = max(1, 4096 // length)
    for start in range(0, questions, rows):
        prompts, answers = encode_cases(tokenizer, cases[start : start + rows])
        output = model(input_ids=torch.cat([prompts, answers[:, :-1]], dim=1), output_hidden_states=True)
        note("logit_answer", output.logits[:, -docs.ANSWER_TOKENS :].abs().max().item())
        note("logit", output.logits.abs().max().item())
        for hidden in output.hidden_states:
            note("hidden", hidden.abs().max().item())
    for handle in handles:
        handle.remove()
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generate", action="store_true", help="decode step by step instead of in one pass")
    parser.add_argument("--magnitudes", type=int, metavar="LENGTH", help="also report the largest values at LENGTH")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()

    torch.set_num_threads(min(2, torch.get_num_threads()))
    model = load_model(args.model)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    rows = []
    print(f"{'tokens':>7} {'questions':>10} {'exact':>8} {'with eos':>9} {'1st digit':>10}")
    for length in args.lengths:
        row = measure(model, tokenizer, length, docs.evaluation_cases(length, args.questions, args.seed), args.generate)
        rows.append(row)
        shares = f"{row['exact']:8.4f} {row['exact_with_eos']:9.4f} {row['first_digit']:10.4f}"
        print(f"{length:7d} {args.questions:10d} {shares}", flush=True)
    result: dict[str, Any] = {"accuracy": rows}
    if args.magnitudes:
        result["magnitudes"] = magnitudes(model, tokenizer, args.magnitudes, min(64, args.questions), args.seed)
        print(f"largest absolute values at {args.magnitudes} tokens:")
        for name, value in result["magnitudes"].items():
            print(f"  {name:16s} {value:9.3f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
