"""A GGUF file as a checkpoint folder: where a person wants it, or in the cache under the digest of its content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.checkpoints.folders import file_digest, holds, make_folder, models_cache
from launch.terminal.progress import Stage

if TYPE_CHECKING:
    from models.gguf.conversion import GgufModel

NOTICE = "NOTICE"


def convert(file: Path, out: Path | None = None, progress: Stage = lambda stage, done, total: None) -> Path:
    """Return the folder of a GGUF file's model, made unless it is there already.

    Raises `CheckpointError` for a file that is not read, and what `make_folder` raises.
    """
    digest = file_digest(file, progress)
    target = out if out is not None else models_cache() / f"{file.stem}-{digest[:12]}"
    if holds(target, digest):
        return target
    from models.gguf.conversion import GgufModel

    model = GgufModel.open(file)

    def make(folder: Path, work: Path) -> dict[str, Any]:
        write_folder(model, digest, folder, progress)
        return {"file": file.name}

    return make_folder(target, digest, model.size, make, progress)


def write_folder(model: GgufModel, digest: str, folder: Path, progress: Stage, notice: str = "") -> None:
    """Fill an empty folder with the model, and with a notice of where it comes from, which begins with `notice`."""
    model.write(folder, lambda done, total: progress("converting", done, total))
    said = model.origin()
    (folder / NOTICE).write_text(
        f"{notice}Converted by mpcache from the GGUF file {model.header.path.name} (SHA-256 {digest}); the weights are "
        f"the file's, quantised ones as the numbers that they stand for.\n{said and 'The file says of itself:'}\n{said}",
        encoding="utf-8",
    )
