"""What `--model` may name, by one rule for all commands.

1. A folder or file that is there: a checkpoint's folder, or a GGUF file, which is converted into the cache.
2. A name of `mpcache fetch`: the folder that it has made. Nothing is fetched by another command.
3. For commands that need no weights (estimate, plan, bench), a known shape; it goes before a folder of the same name, which
   is then written ./NAME.
"""

from __future__ import annotations

from pathlib import Path

from launch.checkpoints.fetching import SOURCES
from launch.checkpoints.folders import holds, models_cache
from mpc.errors import ConfigurationError


def is_name(model: Path) -> bool:
    """Return whether this is a name, not a path to somewhere.

    >>> is_name(Path("smollm2")), is_name(Path("./smollm2")), is_name(Path("models/smollm2"))
    (True, True, False)
    """
    return len(model.parts) == 1 and not model.is_absolute() and model.parts[0] not in ("..", "~")


def named_folder(model: Path, option: str = "--model") -> Path:
    """Return the path itself where something is there, else the folder of the fetched model of this name.

    Raises `ConfigurationError` that says what would be right for anything else: a name that was not fetched yet, a shape
    without weights, a path where nothing is.
    """
    if model.exists():
        return model
    name = str(model)
    fetched = ", ".join(SOURCES)
    if not is_name(model):
        raise ConfigurationError(
            f"{option} {model}: nothing is there; give a checkpoint's folder, a GGUF file, or a name of `mpcache fetch` "
            f"({fetched})"
        )
    if (source := SOURCES.get(name)) is not None:
        folder = models_cache() / name
        if holds(folder, source.sha256):
            return folder
        raise ConfigurationError(f"{option} {name} is not fetched yet: run `mpcache fetch {name}`")
    from models.shapes import ENCODER_SHAPES, SHAPES

    if name in SHAPES or name in ENCODER_SHAPES:
        raise ConfigurationError(
            f"{option} {name} is a known shape, which has no weights: estimate, plan and bench take it; here give a "
            f"checkpoint's folder, a GGUF file, or a name of `mpcache fetch` ({fetched})"
        )
    raise ConfigurationError(
        f"{option} {name} is no folder here and no name of `mpcache fetch` ({fetched}); give a checkpoint's folder, a GGUF "
        "file, or one of these names"
    )


def named_shape(name: str) -> str:
    """Return a known shape's name, a path, or the folder of a fetched model, for `models.shapes.find_description`, which
    says what is wrong with anything else."""
    path = Path(name)
    known = name in SOURCES and not path.exists() and holds(models_cache() / name, SOURCES[name].sha256)
    return str(models_cache() / name) if known else name
