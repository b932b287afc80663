"""`mpcache doctor`: is this machine fit to take part, and if not, what to run."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from launch.cli.options import JsonOption, model_option
from launch.terminal.console import out, print_json
from mpc.errors import MpcacheError
from mpc.role_process import processors

MEMORY_NEEDED = 2e9
TORCHVISION_REMEDY = "pip uninstall torchvision (this build breaks transformers)"
# What the commands import; the other requirements are theirs.
PACKAGES = ("torch", "numpy", "transformers", "grpcio", "protobuf", "cryptography", "safetensors", "tokenizers", "pydantic")


@dataclass(frozen=True)
class Finding:
    """One line of the table. remedy: what to do; empty when it is fine."""

    what: str
    found: str
    remedy: str = ""


def run(
    certificates: Annotated[Path | None, typer.Option("--certificates", help="Folder of an identity to check.")] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="The identity in it; by default all that have a key there.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A role's file: are its certificate and its peers' fingerprints there?")
    ] = None,
    model: Annotated[Path | None, model_option("A checkpoint to look at, or a fetched model: is it calibrated?")] = None,
    port: Annotated[list[int] | None, typer.Option("--port", min=1, max=65535, help="A port that must be free.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check Python, packages, CrypTen, CUDA, memory, ports and certificates. Exit code 1 when something is wrong."""
    findings = [*_environment(), *_machine(), _proxies(), *(_port(p) for p in port or [0])]
    if certificates is not None:
        findings += _certificates(certificates, name or [])
    if config is not None:
        findings += _role(config)
    if model is not None:
        findings.append(_calibration(model))
    problems = [f for f in findings if f.remedy]
    if as_json:
        lines = [{"what": f.what, "found": f.found, "ok": not f.remedy, "remedy": f.remedy} for f in findings]
        print_json({"ok": not problems, "findings": lines})
    else:
        table = Table(box=None, header_style="bold")
        for column in ("", "", "found", "remedy"):
            table.add_column(column, overflow="fold")
        for f in findings:
            mark = Text("problem", style="bold red") if f.remedy else Text("ok", style="green")
            table.add_row(mark, Text(f.what), Text(f.found), Text(f.remedy))
        out.print(table)
    if problems:
        raise typer.Exit(1)


def _environment() -> Iterator[Finding]:
    running = ".".join(str(part) for part in sys.version_info[:3])
    old = sys.version_info < (3, 11)
    yield Finding("python", running, "install Python 3.11 or newer, then `make clean setup`" if old else "")
    for package in PACKAGES:
        yield _package(package)
    yield _crypten()
    yield _torchvision()
    yield _cuda()


def _package(name: str) -> Finding:
    from packaging.requirements import Requirement

    wanted = next((r for r in map(Requirement, requires("mpcache") or []) if r.name == name), None)
    needs = str(wanted).split(";")[0] if wanted is not None else name
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "missing", f"pip install '{needs}'")
    fits = wanted is None or wanted.specifier.contains(found, prereleases=True)
    return Finding(name, found, "" if fits else f"pip install '{needs}'")


def _crypten() -> Finding:
    from protocols.registry import SUITES

    if find_spec("crypten") is None:
        return Finding("crypten", f"not installed; for the suite crypten alone: {SUITES['crypten'].install}")
    try:
        from protocols.crypten.binding.requirement import require_crypten

        module = require_crypten()
    except MpcacheError as error:
        return Finding("crypten", "unusable", str(error))
    alias = sys.modules.get("torch.onnx._internal.registration")
    moved = alias is not None and alias.__name__ != "torch.onnx._internal.registration"
    return Finding("crypten", f"{module.__version__}{', one module of torch aliased' if moved else ''}")


def _torchvision() -> Finding:
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return Finding("torchvision", "absent, as it should be")
    if not _importable("torchvision"):
        return Finding("torchvision", f"{found}, cannot be imported", TORCHVISION_REMEDY)
    return Finding("torchvision", f"{found}, not needed")


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a build for another torch fails with RuntimeError or OSError
        return False
    return True


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("cuda", "none; computing on the CPU")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Finding("cuda", f"{torch.version.cuda}: {names}")


def _proxies() -> Finding:
    named = [
        name for name in ("http_proxy", "https_proxy", "all_proxy") if os.environ.get(name) or os.environ.get(name.upper())
    ]
    return Finding("proxies", f"{', '.join(named)}: for downloads alone, peers are reached directly" if named else "none")


def _machine() -> Iterator[Finding]:
    yield Finding("cores", str(processors()))
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        yield Finding("memory", "unknown")
        return
    remedy = f"the demo's processes need {MEMORY_NEEDED / 1e9:g} GB together" if total < MEMORY_NEEDED else ""
    yield Finding("memory", f"{total / 1e9:.1f} GB", remedy)


def _port(port: int) -> Finding:
    what = f"port {port}" if port else "ports"
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            remedy = f"stop what listens there (`ss -ltnp 'sport = :{port}'`) or choose another port"
            return Finding(what, error.strerror or "refused", remedy if port else "allow processes to listen at 127.0.0.1")
    return Finding(what, "free" if port else "can listen at 127.0.0.1")


def _calibration(directory: Path) -> Finding:
    from models.calibration.record import FILE, find, read_record
    from models.checkpoint import load_checkpoint

    remedy = f"mpcache calibrate --model {directory}"
    try:
        found = find(directory, load_checkpoint(directory).description)
    except MpcacheError as error:
        return Finding("calibration", "the checkpoint cannot be read", str(error))
    if found is None:
        state = "none" if read_record(directory) is None else f"{FILE} does not fit the checkpoint"
        if not os.access(directory, os.W_OK):
            return Finding("calibration", f"{state}, and {directory} cannot be written", f"make it writable, then {remedy}")
        return Finding("calibration", state, remedy)
    over = [excess.text for suite in found.suites for excess in found.excesses(suite)]
    if over:
        return Finding("calibration", "values that no bound holds", "; ".join(over))
    return Finding("calibration", f"{FILE} fits; {found.extremes.tokens} tokens")


def _role(path: Path) -> Iterator[Finding]:
    from parties.config.role_config import load_config
    from parties.identity.certificates import check
    from parties.identity.trust import check_pins, peers_of
    from parties.status.status import doubts

    try:
        config = load_config(path)
    except MpcacheError as error:
        yield Finding("configuration", "unusable", str(error))
        return
    try:
        check_pins(config)
    except MpcacheError as error:
        yield Finding("fingerprints", "missing", str(error))
    else:
        known = [peer for peer in peers_of(config).values() if peer.pins]
        yield Finding("fingerprints", f"of {len(known)} of {len(peers_of(config))} peers")
    try:
        identity = check(config.certificates, config.name, config.role)
    except MpcacheError as error:
        yield Finding(f"identity {config.name}", "unusable", str(error))
        return
    yield Finding(
        f"identity {config.name}", f"valid until {identity.expires:%Y-%m-%d}; {len(identity.revoked)} keys revoked"
    )
    for doubt in doubts(config, identity):
        yield Finding("trust", doubt.reason, doubt.remedy)


def _certificates(directory: Path, names: list[str]) -> Iterator[Finding]:
    from parties.identity.certificates import check

    wanted = names or sorted(p.stem for p in directory.glob("*.key") if p.stem != "authority")
    if not wanted:
        yield Finding("certificates", f"{directory}: none", "make them with `mpcache certs`, or name the right folder")
    for name in wanted:
        try:
            identity = check(directory, name)
        except MpcacheError as error:
            yield Finding(f"identity {name}", "unusable", str(error))
        else:
            yield Finding(f"identity {name}", f"valid until {identity.expires:%Y-%m-%d}")
