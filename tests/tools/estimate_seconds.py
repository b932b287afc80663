"""Seconds of prompts and tokens as `mpcache estimate` predicts them, beside those of processes on this machine.

Part of `python -m tests.tools.estimate_check --seconds`. Each deployment answers every prompt several times, for one token
alone and for several; from both follow a prompt and a token, in wall-clock seconds at the client and in processor seconds of
each role. Of repetitions the median of the wall-clock time counts, which means something on a quiet machine only, and the
least processor time, which other programs change less.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PARTIES, TOKENS, REPEAT = 2, 24, 3
LIMIT = 0.3
SETTLED = 0.3  # seconds after an answer until servers have ended its session
TICK = 1 / os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int | str) -> float:
    """Return the processor time that a process has taken so far."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * TICK


@dataclass(frozen=True)
class Taken:
    """Seconds of one answer. first: until its first token; each: of a further one; party, dealer, client: processor
    seconds of a party on average, and of the others."""

    first: float
    each: float
    party: float
    dealer: float
    client: float


def measure(folder: Path, suite: str, policies: tuple[str, ...], lengths: tuple[int, ...], repeat: int = REPEAT) -> Any:
    """Run answers of one model; return their seconds as plain numbers, by policy and prompt."""
    from launch.checkpoints.calibrating import calibration_for
    from launch.local.deployment import local_deployment
    from models.checkpoint import read_architecture
    from parties.client.client import Client
    from protocols.registry import SuiteSpec

    vocabulary = read_architecture(folder).vocabulary
    began = time.perf_counter()
    out: dict[str, Any] = {"sessions": []}
    with local_deployment(PARTIES) as deployment:
        out["start"] = time.perf_counter() - began
        began = time.perf_counter()
        deployment.share_model(folder, "measured", calibration_for(folder, SuiteSpec(suite)).suites)
        out["share"] = time.perf_counter() - began
        client = Client(deployment.client)
        reference = client.find_model("measured")
        for policy in policies:
            for length in lengths:
                prompt = [(7 * i + 3) % vocabulary for i in range(length)]
                asked = prompt, suite, policy, reference
                out.setdefault("load", asdict(answer(deployment, client, asked, 1)))
                found = {
                    new: [asdict(answer(deployment, client, asked, new)) for _ in range(repeat)] for new in (1, 1 + TOKENS)
                }
                out["sessions"].append({"policy": policy, "prompt": length, "taken": found})
    return out


def answer(deployment: Any, client: Any, asked: tuple[Any, ...], new: int) -> Taken:
    """Run one session, and say what it took."""
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    prompt, suite, policy, reference = asked
    request = GenerationRequest(prompt, SamplingParams(new, ignore_eos=True), SuiteSpec(suite), policy, reference)
    roles = {child.name: child.pid for child in deployment.children} | {"client": os.getpid()}
    before = {name: processor_seconds(pid) for name, pid in roles.items()}
    result = deployment.watched(lambda: client.generate(request))
    time.sleep(SETTLED)
    took = {name: processor_seconds(pid) - before[name] for name, pid in roles.items()}
    times = result.token_seconds
    party = sum(took[f"party{i}"] for i in range(PARTIES)) / PARTIES
    each = (times[-1] - times[0]) / max(1, len(times) - 1)
    return Taken(times[0], each, party, took["dealer"], took["client"])


def of_stages(taken: dict[Any, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return seconds of "prompt" and "token": medians of wall-clock time, least processor time of each role."""
    one, many = (taken[new] for new in sorted(taken, key=int))
    least = {role: [min(t[role] for t in some) for some in (one, many)] for role in ("party", "dealer", "client")}
    prompt = {"wall": statistics.median(t["first"] for t in one + many)}
    token = {"wall": statistics.median(t["each"] for t in many)}
    for role, (alone, whole) in least.items():
        prompt[role], token[role] = alone, (whole - alone) / TOKENS
    return {"prompt": prompt, "token": token}


# ---- predicted, and both together ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """What was measured of a stage, and what was predicted: seconds of a prompt or of a token, of a role's processor or of
    the "wall"; or bytes of a role in a stage, or its "peak" over all stages of a deployment with this session."""

    model: str
    suite: str
    policy: str
    prompt: int
    role: str
    stage: str
    measured: float
    predicted: float

    @property
    def off(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


def compare(folder: Path, model: str, suite: str, found: dict[str, Any]) -> list[Row]:
    """Return what was measured beside what is predicted with this machine's rates."""
    from launch.cli.options import options_for
    from launch.predict.networks import LOCALHOST
    from launch.predict.seconds import Machines
    from models.costs.estimation import estimate
    from models.costs.rates import measure_rates
    from models.costs.tracing import Costs, Setting
    from models.shapes import find_shape

    machines = Machines.of(LOCALHOST, measure_rates(), Setting(suite, PARTIES))
    options = options_for(str(folder), suite, None)
    rows = []
    for session in found["sessions"]:
        setting = Setting(suite, PARTIES, session["policy"], options)
        costs = estimate(find_shape(str(folder)), setting, session["prompt"], 1 + TOKENS)
        token = Costs({key: value / TOKENS for key, value in costs.further.items()})
        for stage, seen in of_stages(session["taken"]).items():
            taken = machines.seconds(costs.first, sessions=1) if stage == "prompt" else machines.seconds(token)
            predicted = {"wall": taken.total, "party": taken.party, "dealer": taken.dealer}
            about = model, suite, session["policy"], session["prompt"]
            rows += [Row(*about, role, stage, max(seen[role], 1e-6), seconds) for role, seconds in predicted.items()]
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines of Markdown: measured seconds, and what the prediction is off."""
    lines = ["| model, suite, policy | prompt | of | wall | a party's processor | the dealer's |", "| --- " * 6 + "|"]
    cells: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        name = f"{Path(row.model).name if '/' in row.model else row.model}, {row.suite}, {row.policy}"
        text = f"{row.measured:.2f} s, {100 * row.off:+.0f} %"
        cells.setdefault((name, row.prompt, row.stage), []).append(text)
    return [*lines, *("| " + " | ".join(map(str, (*about, *found))) + " |" for about, found in cells.items())]


def report(rows: Sequence[Row], by_processor: bool, stolen: float = 0.0) -> int:
    """Print the rows and what is off by too much; return the exit code. stolen: share of the processors that the machine's
    host took away while all was measured."""
    from launch.local.quiet import STOLEN, disturbance

    print("\n".join(table(rows)), flush=True)
    taken = f"its host took {100 * stolen:.0f} % of its processors away meanwhile" if stolen > STOLEN else ""
    if disturbed := taken or disturbance():
        print(f"This machine is not quiet ({disturbed}): wall-clock seconds say little (--processor: compare the others).")
    counted = [row for row in rows if (row.role != "wall") == by_processor]
    wrong = [row for row in counted if abs(row.off) > LIMIT]
    for row in wrong:
        print(f"{row.model} {row.suite} {row.policy} {row.prompt}: {row.stage}, {row.role}: {row.off:+.0%}")
    print(f"{len(counted) - len(wrong)} of {len(counted)} within {LIMIT:.0%}")
    return int(bool(wrong))
