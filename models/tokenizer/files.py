"""A folder's tokenizer as transformers' AutoTokenizer reads it: nothing is downloaded and no remote code is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.config import read_json
from mpc.errors import CheckpointError

# Files that hold a vocabulary; the others (tokenizer_config.json and the like) only say how to use one.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")


def read_tokenizer(directory: Path) -> Any:
    """Return the tokenizer. Raises `CheckpointError` naming file or folder, the reason and the remedy."""
    if not any(next(directory.glob(pattern), None) for pattern in _VOCABULARIES):
        raise CheckpointError(f"{directory}: no tokenizer.json there; copy the model's tokenizer files into the directory")
    file = directory / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    if "auto_map" in settings and not settings.get("tokenizer_class"):
        raise CheckpointError(
            f"{file}: 'auto_map' names code that would have to be run to read this tokenizer, which is never done; "
            "save it as tokenizer.json: AutoTokenizer.from_pretrained(DIR, trust_remote_code=True).save_pretrained(OUT)"
        )
    if not (directory / "tokenizer.json").exists():
        for name in _SENTENCEPIECE:
            if (directory / name).exists():
                _check_model_file(directory / name)
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **_without_the_model(directory, settings)
        )
    except Exception as error:  # the package tokenizers raises bare Exception
        raise CheckpointError(_reason(directory, error)) from None
    if found is False or found is None:
        raise CheckpointError(f"{directory}: its tokenizer cannot be read; add tokenizer.json")
    return found


def _without_the_model(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the argument `config`, as far as AutoTokenizer looks at it where the folder names its tokenizer's class.

    Left to itself it makes the model's whole configuration, which imports much of transformers and takes 2 s; it then asks
    it for no more than these four values.
    """
    if not settings.get("tokenizer_class") or "auto_map" in settings:
        return {}
    from transformers import PreTrainedConfig

    file = directory / "config.json"
    values = read_json(file) if file.exists() else {}
    config = PreTrainedConfig(tokenizer_class=values.get("tokenizer_class"), name_or_path=str(directory))
    config.model_type = values.get("model_type") or ""
    if isinstance(values.get("model_name"), str):
        config.model_name = values["model_name"]
    return {"config": config}


def _check_model_file(file: Path) -> None:
    """Raise `CheckpointError` unless a .model file can be read: transformers makes an empty tokenizer of a broken one."""
    with file.open("rb") as opened:
        first = opened.readline(4096).split()
    if len(first) == 2 and first[1].isdigit():  # base64 and a rank
        if find_spec("tiktoken") is None:
            raise CheckpointError(f"{file}: needs the package tiktoken; run: pip install tiktoken")
        return
    if find_spec("sentencepiece") is None:
        raise CheckpointError(f"{file}: needs the package sentencepiece; run: pip install sentencepiece")
    import sentencepiece

    try:
        sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
        raise CheckpointError(f"{file}: is not a sentencepiece model; download the file again") from None


def _reason(directory: Path, error: Exception) -> str:
    """Return the message for what AutoTokenizer raised."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    whole = directory / "tokenizer.json"
    if whole.exists():
        return f"{whole}: is not a tokenizer ({text}); download the file again"
    return f"{directory}: its tokenizer cannot be read ({text}); add tokenizer.json"
