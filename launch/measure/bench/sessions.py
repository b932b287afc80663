"""Whole sessions by client, compute parties, dealer and model owner, as in real use, from a checkpoint."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.lab.lab import Lab, roles_for
from launch.local.checks import check_suite
from launch.local.deployment import CLIENT, DEALER, LocalDeployment, local_deployment
from launch.local.memory import peak_memory
from launch.measure.bench.cell import LOCALHOST, Cell
from launch.measure.bench.measure import WEIGHT_BYTES, bandwidth, network_share, spread
from launch.terminal.console import error_line
from launch.terminal.session_costs import costs_by_stage
from models.checkpoint import read_architecture
from models.generation import GenerationPlan
from mpc.errors import ConfigurationError, EnvironmentProblem, MpcacheError
from mpc.ledger import Cost
from mpc.random import Prg, derive_seed
from parties.client.client import Client, GenerationResult
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from protocols.registry import SuiteSpec

MODEL = "benchmark"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def check_session(cell: Cell) -> None:
    """Raise `ConfigurationError` for a model, lengths, suite or policy that a session cannot have."""
    folder = Path(cell.model)
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"model '{cell.model}': a session needs a checkpoint's folder with config.json")
    check_suite(cell.suite)
    GenerationPlan(cell.prompt, cell.new_tokens, policy=cell.policy).check(read_architecture(folder))


def measure_session(cell: Cell, memory_bytes_per_second: float) -> dict[str, Any]:
    """Run `run_session` in a process of its own: in a network's namespace a client must not have connected anywhere before.
    Raises `EnvironmentProblem` with the process' error."""
    check_session(cell)
    with tempfile.TemporaryDirectory(prefix="mpcache-session-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-P", "-m", "launch.measure.bench.sessions"]
        asked = json.dumps({"cell": cell.model_dump(mode="json"), "rate": memory_bytes_per_second, "out": str(out)})
        done = subprocess.run([*command, asked], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it printed no error"]
            raise EnvironmentProblem(f"the session failed: {lines[-1][:400]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def run_session(cell: Cell, memory_bytes_per_second: float) -> dict[str, Any]:
    """Run `repeat` sessions after one that loads the model. The prompt is random tokens; no token ends a session early."""
    folder = Path(cell.model)
    architecture = read_architecture(folder)
    prompt = _random_tokens(cell, architecture.vocabulary)
    with _network(cell) as lab, local_deployment(cell.parties, cell.device, lab) as deployment:
        deployment.share_model(folder, MODEL, calibrated=False)
        client = Client(deployment.client)
        reference = client.find_model(MODEL)

        params = SamplingParams(cell.new_tokens, ignore_eos=True)
        request = GenerationRequest(prompt, params, SuiteSpec(cell.suite, options=cell.options), cell.policy, reference)

        def session() -> GenerationResult:
            result = deployment.watched(lambda: client.generate(request))
            result.check_range()
            return result

        loading = session()
        before = _dealer_cpu(deployment)
        results = [session() for _ in range(cell.repeat)]
        dealer = (_dealer_cpu(deployment) - before) / cell.repeat
        memory = {child.name: peak_memory(child.pid) for child in deployment.children}
    return _record(cell, loading, results, dealer, memory, architecture.parameters(), memory_bytes_per_second)


@contextmanager
def _network(cell: Cell) -> Iterator[Lab | None]:
    """Make the lab of the cell's network, with this thread in the client's namespace; None on this machine as it is."""
    if cell.network == LOCALHOST:
        yield None
        return
    with Lab(cell.network, roles_for(cell.parties)) as lab, lab.inside(CLIENT):
        yield lab


def _record(
    cell: Cell,
    loading: GenerationResult,
    results: list[GenerationResult],
    dealer_cpu: float,
    memory: dict[str, int],
    parameters: int,
    memory_bytes_per_second: float,
) -> dict[str, Any]:
    last = results[-1]
    each = [(r.token_seconds[-1] - r.token_seconds[0]) / (len(r.token_seconds) - 1) for r in results]
    stages = costs_by_stage(last.costs)
    further = stages["tokens", ""].divided(cell.new_tokens - 1)
    sent = Cost(bytes_sent=round(max(further.bytes_sent.values())))
    token = statistics.median(each)
    return {
        "first_token_seconds": spread([r.token_seconds[0] for r in results]),
        "first_token_seconds_loading": loading.token_seconds[0],
        "seconds": spread(each),
        "tokens_per_second": 1 / token,
        "rounds": further.rounds,
        "bytes_sent": further.bytes_sent,
        "offline_bytes": further.offline_bytes,
        "prompt": {
            "rounds": stages["prefill", ""].rounds,
            "bytes_sent": stages["prefill", ""].bytes_sent,
            "offline_bytes": stages["prefill", ""].offline_bytes,
        },
        "session": {
            name: {
                "rounds": c["total"]["rounds"],
                "bytes_sent": c["total"]["bytes_sent"],
                "offline_bytes": c["total"]["offline_bytes"],
            }
            for name, c in last.costs.items()
        },
        "dealer_cpu_seconds_per_session": dealer_cpu,
        "peak_memory_bytes": memory,
        "memory_bandwidth": bandwidth(WEIGHT_BYTES * parameters, token, memory_bytes_per_second),
        "network_bandwidth": network_share(cell, sent, token),
    }


def _random_tokens(cell: Cell, vocabulary: int) -> list[int]:
    """Return a public prompt: nothing that a benchmark computes on is secret."""
    seed = derive_seed(bytes(32), "benchmark prompt", cell.seed)
    return [int(token) % vocabulary for token in Prg(seed).ring((cell.prompt,), 32)]


def _dealer_cpu(deployment: LocalDeployment) -> float:
    (dealer,) = (child for child in deployment.children if child.name == DEALER)
    return cpu_seconds(dealer.pid)


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used; 0 where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def main() -> None:
    """Measure one cell, as `measure_session` asks for it."""
    asked = json.loads(sys.argv[1])
    try:
        found = run_session(Cell.model_validate(asked["cell"]), asked["rate"])
    except MpcacheError as error:
        print(error_line(error), file=sys.stderr)
        sys.exit(2)
    Path(asked["out"]).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
