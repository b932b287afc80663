"""`mpcache convert`: a GGUF file as a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal.console import out
from launch.terminal.progress import stages


def run(
    file: Annotated[Path, typer.Argument(help="GGUF file of a llama, qwen2 or gpt2 model.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to make; by default one in the cache, ~/.cache/mpcache/models.")
    ] = None,
) -> None:
    """Write the model of a GGUF file as a Hugging Face checkpoint folder, and print the folder.

    All quantised types that the package gguf reads are; weights become the numbers that they stand for. Where a command
    takes --model, a GGUF file may be named too: it is converted into the cache the first time. See docs/checkpoints.md.
    """
    from launch.checkpoints.converting import convert

    with stages(in_bytes=True) as progress:
        made = convert(file, folder, progress)
    out.print(str(made), soft_wrap=True, markup=False)
