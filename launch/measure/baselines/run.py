"""A decode step or a prompt of a GPT-2 shape in SecretFlow-SPU, on this machine, in the same run as this project's.

SPU runs one layer and the output head with arg-max; a whole token, or prompt, is `layers` times the layer plus the head,
which leaves the embedding out and so favours SPU. Bytes and send actions are those of SPU's own log, of the party with the
most. An action is a message to one party; SPU counts no rounds. Several messages can share a round, and a round in which
that party only receives adds none: what a shaped network's delay adds says how many one-way delays the step really waits
for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from launch.lab.lab import Lab
from launch.local.ports import free_ports
from launch.measure.baselines.environment import SPU, python
from launch.measure.bench.cell import LOCALHOST, Cell
from launch.measure.bench.measure import spread
from models.shapes import find_shape, with_layers
from mpc.errors import ConfigurationError, EnvironmentProblem

SCRIPT = Path(__file__).with_name("spu_party.py")
POLL_SECONDS = 0.1
LONGEST_SECONDS = 1800.0

#: Name of the peer -> protocol, exponential, number of parties.
BASELINES = {
    "spu-aby3": ("ABY3", "EXP_TAYLOR", 3),
    "spu-aby3-pade": ("ABY3", "EXP_PADE", 3),
    "spu-semi2k": ("SEMI2K", "EXP_TAYLOR", 2),
}


def check_baseline(cell: Cell) -> None:
    """Raise `ConfigurationError` for an unknown peer, a shape that is not GPT-2's or the wrong number of parties, and
    `EnvironmentProblem` when SPU is not installed."""
    if cell.suite not in BASELINES:
        raise ConfigurationError(f"peer '{cell.suite}' is unknown; choose one of: {', '.join(BASELINES)}")
    parties = BASELINES[cell.suite][2]
    if cell.parties != parties:
        raise ConfigurationError(f"peer {cell.suite} has {parties} parties, the cell asks for {cell.parties}")
    if find_shape(cell.model).family != "gpt2":
        raise ConfigurationError(f"model '{cell.model}': peers run the GPT-2 family's shapes only")
    if cell.policy != "full":
        raise ConfigurationError(f"policy '{cell.policy}': peers run the full cache only")
    python()


def measure_baseline(cell: Cell) -> dict[str, Any]:
    """Run it. Raises `EnvironmentProblem` when a process of SPU fails, with its last line."""
    check_baseline(cell)
    shape = find_shape(cell.model)
    shape = shape if cell.layers is None else with_layers(shape, cell.layers)
    protocol, exponential, parties = BASELINES[cell.suite]
    plan = {
        "protocol": protocol,
        "exp": exponential,
        "width": shape.width,
        "heads": shape.heads,
        "cached": 0 if cell.measure == "peer-prompt" else cell.prompt,
        "tokens": cell.prompt if cell.measure == "peer-prompt" else 1,
        "vocabulary": shape.vocabulary,
        "seed": cell.seed,
        "repeat": cell.repeat,
    }
    folder = Path(tempfile.mkdtemp(prefix="mpcache-peer-"))
    names = [f"party{n}" for n in range(parties)]
    try:
        with nullcontext() if cell.network == LOCALHOST else Lab(cell.network, names) as lab:
            hosts = dict.fromkeys(names, "127.0.0.1") if lab is None else lab.addresses
            plan["addresses"] = [f"{hosts[name]}:{port}" for name, port in zip(names, free_ports(parties), strict=True)]
            (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
            _run(folder, names, cell.threads, lab)
        reports = [json.loads((folder / f"party-{n}.json").read_text(encoding="utf-8")) for n in range(parties)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record(cell, shape.layers, reports)


def _run(folder: Path, names: list[str], threads: int, lab: Lab | None) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    command = [str(python()), str(SCRIPT), str(folder)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    children = [
        subprocess.Popen(  # type: ignore[call-overload]
            own if lab is None else lab.command(name, own), env=environment, start_new_session=True, **quiet
        )
        for name, own in ((name, [*command, str(n)]) for n, name in enumerate(names))
    ]
    limit = time.monotonic() + LONGEST_SECONDS
    try:
        while None in (codes := [child.poll() for child in children]):
            if any(codes) or time.monotonic() > limit:
                break
            time.sleep(POLL_SECONDS)
        failed = next((n for n, code in enumerate(codes) if code), None)
        if failed is not None or None in codes:
            n = failed if failed is not None else codes.index(None)
            raise EnvironmentProblem(f"party {n} of {SPU} failed: {_last_line(folder / f'party-{n}.log')}")
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it printed nothing"
    told = [line for line in lines if "Error" in line or "error" in line]
    return (told or lines or ["it printed nothing"])[-1][:300]


def record(cell: Cell, layers: int, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result as plain numbers: of a layer, of the head, and of a whole token."""
    parts: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {}
    for name in ("layer", "head"):
        runs = [report["programs"][name]["runs"] for report in reports]
        if any(run["bytes_sent"] < 0 for party in runs for run in party):
            raise EnvironmentProblem(f"{SPU} did not log its bytes; another version of it?")
        parts[name] = {
            "bytes_sent": max(party[0]["bytes_sent"] for party in runs),
            "bytes_sent_mean": statistics.mean(party[0]["bytes_sent"] for party in runs),
            "send_actions": max(party[0]["send_actions"] for party in runs),
            "cpu_seconds": max(statistics.median(run["cpu_seconds"] for run in party) for party in runs),
        }
        seconds[name] = [max(party[n]["seconds"] for party in runs) for n in range(cell.repeat)]
    whole = [layers * layer + head for layer, head in zip(seconds["layer"], seconds["head"], strict=True)]
    names = [f"party{n}" for n in range(len(reports))]

    def sums(what: str) -> dict[str, float]:
        return {
            name: layers * report["programs"]["layer"]["runs"][0][what] + report["programs"]["head"]["runs"][0][what]
            for name, report in zip(names, reports, strict=True)
        }

    return {
        "system": SPU,
        "how": f"{layers} times one layer plus the head with arg-max, measured apart; embedding left out",
        "rounds": layers * parts["layer"]["send_actions"] + parts["head"]["send_actions"],
        "rounds_are": "send actions of the party with the most",
        "bytes_sent": sums("bytes_sent"),
        "bytes_received": sums("bytes_received"),
        "offline_bytes": dict.fromkeys(names, 0),
        "per_layer": {"rounds": parts["layer"]["send_actions"], "bytes_sent": parts["layer"]["bytes_sent"]},
        "seconds": spread(whole),
        "seconds_layer": spread(seconds["layer"]),
        "seconds_head": spread(seconds["head"]),
        "cpu_seconds": spread([layers * parts["layer"]["cpu_seconds"] + parts["head"]["cpu_seconds"]]),
        "tokens_per_second": 1 / statistics.median(whole),
        "peak_memory_bytes": {"party": max(report["peak_memory_bytes"] for report in reports)},
        "max_error": {name: reports[0]["programs"][name]["max_error"] for name in ("layer", "head")},
        "parts": parts,
    }
