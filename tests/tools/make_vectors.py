"""`python -m tests.tools.make_vectors [FILE ...]`: writes the known-answer vectors of docs/vectors.md.

--check compares with what is there; --whole FOLDER writes every party's tape and every message, as they are, instead.
Deterministic: seeds and inputs follow from the names of the cases. Seconds; no network, no GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.vectors import files
from tests.vectors.recording import record


def main(given: list[str]) -> int:
    """The command; 1 when --check finds a difference."""
    known = files.sources()
    parser = argparse.ArgumentParser(prog="python -m tests.tools.make_vectors")
    parser.add_argument("names", nargs="*", metavar="FILE", help="without .json; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with what is there")
    parser.add_argument("--whole", metavar="FOLDER", type=Path, help="write tapes and messages there, of gates only")
    asked = parser.parse_args(given)
    unknown = sorted(set(asked.names) - known.keys())
    if unknown:
        parser.error(f"no vector is named '{unknown[0]}'; there are {', '.join(sorted(known))}")
    if asked.whole:
        return _write_whole(asked.names, asked.whole)
    different = 0
    for name in asked.names or known:
        made = files.content(name)
        if asked.check:
            old = files.read(name) if files.path(name).exists() else None
            found = ["it is missing"] if old is None else list(files.differences(old, made))
            different += bool(found)
            print(f"{name}.json: " + ("as committed" if not found else f"{len(found)} differences, first: {found[0]}"))
        else:
            files.path(name).write_text(files.text(made) + "\n")
            print(f"{name}.json: {files.path(name).stat().st_size:,} bytes")
    if not asked.check and not asked.names:
        for stale in sorted(files.FOLDER.glob("*.json")):
            if stale.stem not in known:
                stale.unlink()
                print(f"{stale.name}: removed, nothing makes it any more")
    return int(different > 0)


def _write_whole(names: list[str], folder: Path) -> int:
    """FOLDER/FILE/CASE/party0.tape and FOLDER/FILE/CASE/round000.0-1.message, cases counted from 0."""
    for name, cases in files.gate_files().items():
        for number, case in enumerate(cases if not names or name in names else []):
            target = folder / name / str(number)
            target.mkdir(parents=True, exist_ok=True)
            record(case, lambda file, data, target=target: target.joinpath(file).write_bytes(data))  # type: ignore[misc]
            print(f"{target}: {case.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
