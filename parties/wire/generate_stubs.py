"""Regenerates the protobuf stubs of `wire.proto`: `python -m parties.wire.generate_stubs`, with `--check` only compares
them."""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
STUBS = ("wire_pb2.py", "wire_pb2.pyi", "wire_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the stubs of `parties/wire/wire.proto` to `target/parties/wire`. Raises `RuntimeError` when protoc fails."""
    from grpc_tools import protoc

    target.mkdir(parents=True, exist_ok=True)
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            str(FOLDER / "wire.proto"),
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status} on {FOLDER / 'wire.proto'}")


def different() -> list[str]:
    """Return the names of committed stubs that are not what `wire.proto` generates."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "parties" / "wire"
        return [
            name
            for name in STUBS
            if not (FOLDER / name).exists() or (FOLDER / name).read_bytes() != (fresh / name).read_bytes()
        ]


def main() -> int:
    """Run the command line: without an argument write, with `--check` compare and return 1 on a difference."""
    if sys.argv[1:] == ["--check"]:
        changed = different()
        if changed:
            print(f"out of date: {', '.join(changed)}; run `python -m parties.wire.generate_stubs`")
        return int(bool(changed))
    if sys.argv[1:]:
        print("usage: python -m parties.wire.generate_stubs [--check]")
        return 2
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
