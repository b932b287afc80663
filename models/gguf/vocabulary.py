"""A GGUF file's vocabulary as tokenizer.json and tokenizer_config.json.

Two kinds are in the supported families' files: byte-level BPE ("gpt2"), whose text is first split by a pattern that the
file names, and sentencepiece's BPE ("llama"), which the scores of its pieces order. A pattern's name that is not known here
is refused: with another pattern most texts have the same ids and some have others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.gguf.configuration import special_id
from models.gguf.header import GgufHeader

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MAX_TOKEN = 1024
_AT = "tokenizer.ggml"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# What these ask for would give other ids. Value: the only one that does not.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "precompiled_charsmap": ([],),
    "remove_extra_whitespaces": (False,),
    "treat_whitespace_as_suffix": (False,),
    "add_sep_token": (False,),
    "suppress_tokens": ([],),
}


@dataclass(frozen=True)
class _Split:
    """How byte-level text is cut before it is merged. pattern: None: GPT-2's own. whole: a piece that is a token is taken
    as it is, whatever merges say (ignore_merges)."""

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    bos: bool = False
    composed: bool = False


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
# tokenizer.ggml.pre -> how it splits; as llama.cpp's names stand for the tokenizer.json files that they were made from.
SPLITS: dict[str, _Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), _Split()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _Split(digits=True)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _Split(_LLAMA3, whole=True, bos=True)),
    "smaug-bpe": _Split(_LLAMA3),
    "qwen2": _Split(_QWEN2, composed=True),
    "deepseek-r1-qwen": _Split(_QWEN2),
    "tekken": _Split(_TEKKEN, whole=True, bos=True),
}
# Older files do not name the pattern; it is known where a family has one.
_UNNAMED = {"gpt2": "gpt-2", "qwen2": "qwen2"}


def write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write the tokenizer's files. Raises `CheckpointError` naming the key that is missing, damaged or not supported."""
    tokens, kinds = _tokens(header)
    model = header.text(f"{_AT}.model")
    for key, allowed in _REFUSED.items():
        value = header.metadata.get(f"{_AT}.{key}")
        if value is not None and value not in allowed:
            raise header.error(f"'{_AT}.{key}' = {str(value)[:40]} is not supported")
    try:
        if model == "gpt2":
            tokenizer, bos = _byte_level(header, tokens)
        elif model == "llama":
            tokenizer, bos = _sentencepiece(header, tokens, kinds), True
        else:
            raise header.error(f"'{_AT}.model' = '{model}' is not supported; supported: gpt2, llama")
        roles = {role: special_id(header, role) for role in ("bos", "eos", "unk", "pad")}
        _add(tokenizer, tokens, kinds, {token for token in roles.values() if token is not None})
        ends = _ends(header, tokenizer, tokens, roles, bos)
    except (ValueError, TypeError) as error:
        raise header.error(f"its tokenizer cannot be made ({error}); use an intact file") from None
    except Exception as error:  # the package tokenizers raises bare Exception
        if type(error) is not Exception:
            raise
        raise header.error(f"its tokenizer cannot be made ({error}); use an intact file") from None
    tokenizer.save(str(folder / TOKENIZER))
    _write_settings(header, folder, {role: tokens[i] for role, i in roles.items() if i is not None}, ends)


def _tokens(header: GgufHeader) -> tuple[list[str], list[int]]:
    """Return all tokens in the order of their ids, and what kind each is."""
    tokens = header.texts(f"{_AT}.tokens")
    if header.text(f"{_AT}.model") is None or not tokens:
        raise header.error(f"has no tokenizer ('{_AT}.model' and '.tokens'); use a complete file")
    rows = header.tensors["token_embd.weight"].shape[0]
    if len(tokens) > rows:
        raise header.error(f"'{_AT}.tokens' has {len(tokens)} entries, but the model has {rows} tokens")
    if len(set(tokens)) != len(tokens):
        twice = next(token for n, token in enumerate(tokens) if token in tokens[:n])
        raise header.error(f"'{_AT}.tokens' has '{twice[:40]}' twice; use an intact file")
    if max(len(token.encode()) for token in tokens) > MAX_TOKEN:
        raise header.error(f"'{_AT}.tokens' has a token of more than {MAX_TOKEN} bytes; use an intact file")
    kinds = header.numbers(f"{_AT}.token_type") or [_NORMAL] * len(tokens)
    if len(kinds) < len(tokens):
        raise header.error(f"'{_AT}.token_type' has {len(kinds)} entries for {len(tokens)} tokens")
    return tokens, [int(kind) for kind in kinds]


def _byte_level(header: GgufHeader, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether a prompt begins with bos where the file does not say."""
    name = header.text(f"{_AT}.pre", _UNNAMED.get(header.text("general.architecture") or ""))
    if name not in SPLITS:
        said = "is missing" if name is None else f"= '{name}' is not supported"
        raise header.error(f"'{_AT}.pre' {said}: how it splits a text is not known; supported: {', '.join(SPLITS)}")
    split, prefix = SPLITS[name], header.flag(f"{_AT}.add_space_prefix", False)
    listed = header.texts(f"{_AT}.merges")
    if listed is None:
        raise header.error(f"'{_AT}.merges' is missing; use a complete file")
    merges = [_pair(header, merge) for merge in listed]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, split.bos


def _pair(header: GgufHeader, merge: str) -> tuple[str, str]:
    first, space, second = merge[1:].partition(" ")
    if not space or not second:
        raise header.error(f"'{_AT}.merges' has '{merge[:40]}', two tokens with a space between are needed")
    return merge[0] + first, second


def _sentencepiece(header: GgufHeader, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    prefix = header.flag(f"{_AT}.add_space_prefix", True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    listed, scores = header.texts(f"{_AT}.merges"), header.numbers(f"{_AT}.scores")
    if listed is not None:
        merges = [_pair(header, merge) for merge in listed]
    elif scores is not None and len(scores) >= len(tokens):
        merges = _ranked(tokens, kinds, scores)
    else:
        raise header.error(f"'{_AT}.scores' must have an entry for each of {len(tokens)} tokens; use a complete file")
    unknown = special_id(header, "unk")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    scheme = "first" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1, right=0)] if prefix else steps)
    return tokenizer


def _ranked(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return merges in the order in which sentencepiece makes them: the best score of what they make first.

    Every way to put a token together from two others is one. Control and byte tokens are no pieces of text.
    """
    pieces = {
        token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind in (_NORMAL, _USER)
    }
    found = []
    for token, index in pieces.items():
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        parts = [(left, right) for left, right in ways if left in pieces and right in pieces]
        parts.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        found += [(scores[index], len(left), len(right), left, right) for left, right in parts]
    found.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _add(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int], named: set[int]) -> None:
    """Add tokens that stand in a text as a whole: control and named ones, which a decoded text leaves out, and the
    user's."""
    special, plain = [], []
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if token and (kind in (_CONTROL, _UNKNOWN) or index in named):
            special.append(AddedToken(token, normalized=False, special=True))
        elif token and kind == _USER:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _ends(
    header: GgufHeader, tokenizer: Tokenizer, tokens: Sequence[str], roles: dict[str, int | None], bos: bool
) -> dict[str, bool]:
    """Put bos and eos around a prompt where the file (or its kind) says so; which of them it is."""
    wanted = {"bos": header.flag(f"{_AT}.add_bos_token", bos), "eos": header.flag(f"{_AT}.add_eos_token", False)}
    words, known = ["$A"], []
    for role, place in (("bos", 0), ("eos", len(words) + 1)):
        index = roles[role]
        if not wanted[role]:
            continue
        if index is None:
            raise header.error(f"'{_AT}.add_{role}_token' is true, but '{_AT}.{role}_token_id' names no token")
        words.insert(place, tokens[index])
        known.append((tokens[index], index))
    if known:
        tokenizer.post_processor = processors.TemplateProcessing(single=words, pair=None, special_tokens=known)
    return wanted


def _write_settings(header: GgufHeader, folder: Path, roles: dict[str, str], ends: dict[str, bool]) -> None:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in roles.items()},
        **{f"add_{role}_token": added for role, added in ends.items()},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = header.text("tokenizer.chat_template")
    if template:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
