"""What `mpcache estimate` predicts beside what processes hold: the memory of every role, stage by stage.

`python -m tests.tools.estimate_check` runs deployments on this machine, one after the other, each with sessions of several
lengths and policies, and compares. A stage's memory is the most that a process has had resident in it (`VmHWM`, which Linux
lets be set back in between); of the parties the one that holds most counts. What other programs do meanwhile does not change
it. Exit code 1 where a role's peak is off by more than 15 %.

With --seconds the same for seconds of a prompt and of a token (`tests.tools.estimate_seconds`), of four models and three
lengths. Exit code 1 where one is off by more than 30 %; with --processor where processor seconds of a party or dealer are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.local.quiet import Meanwhile
from tests.tools import estimate_seconds
from tests.tools.estimate_seconds import Row

PARTIES, NEW_TOKENS = 2, 3
LIMIT = 0.15
RECALL = "models/recall/gpt2"
MPCACHE = "mpcache:preset=few-queries"


@dataclass(frozen=True)
class Case:
    """One deployment. model: a folder, "smollm2", or a name of `random_model`. lengths: of prompts; each policy has them
    all."""

    model: str
    suite: str
    lengths: tuple[int, ...]
    policies: tuple[str, ...] = ("full",)


CASES = (
    Case(RECALL, "masked", (64, 256, 512)),
    Case(RECALL, "masked", (256, 512), (MPCACHE + ",sharing=1",)),
    Case(RECALL, "masked", (512,), ("h2o:budget=0.4", "snapkv:budget=0.4")),
    Case(RECALL, "crypten", (64, 256, 512), ("full",)),
    Case("qwen2", "masked", (64, 128, 256)),
    Case("qwen2", "masked", (256,), (MPCACHE,)),
    Case("qwen2", "masked", (512,), (MPCACHE, "h2o:budget=0.4", "snapkv:budget=0.4")),
    Case("qwen2", "crypten", (64, 128, 256), ("full",)),
    Case("gpt2", "masked", (64, 128, 256)),
    Case("gpt2", "masked", (256,), (MPCACHE,)),
    Case("smollm2", "masked", (64, 128, 256)),
    Case("smollm2", "masked", (256,), (MPCACHE,)),
)


SECONDS = (
    Case(RECALL, "masked", (64, 256, 512)),
    Case("qwen2", "masked", (32, 64, 128)),
    Case("gpt2-wide", "masked", (32, 64, 128)),
    Case("llama", "masked", (32, 64, 128)),
)


def random_model(name: str, folder: Path) -> None:
    """Write a checkpoint with random weights: GPT-2's shape, four layers of it with fewer tokens, or a small Qwen 2 or
    LLaMA."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    if name.startswith("gpt2"):
        less = {"n_layer": 4, "vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0} if name == "gpt2-wide" else {}
        GPT2LMHeadModel(GPT2Config(**less)).save_pretrained(folder)
        return
    if name == "llama":
        other = LlamaConfig(
            vocab_size=16384,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=10,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=2048,
        )
        LlamaForCausalLM(other).save_pretrained(folder)
        return
    small = Qwen2Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(small).save_pretrained(folder)


def checkpoint(name: str, work: Path) -> Path:
    """Return the folder of a case's model."""
    if name == "smollm2":
        from launch.checkpoints.fetching import fetch

        return fetch(name)
    if Path(name).is_dir():
        return Path(name)
    if not (work / name).is_dir():
        random_model(name, work / name)
    return work / name


# ---- measured: the client's process, which starts the others -------------------------------------------------------------
def _peak(pid: int | str) -> int:
    """Return a process' peak since the last call, and set it back."""
    from launch.local.memory import peak_memory

    found = peak_memory(None if pid == "self" else int(pid))
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return found


def measure(folder: Path, case: Case) -> dict[str, Any]:
    """Run a case; return bytes by (policy, prompt), stage and role, and seconds of prompt and token."""
    from launch.local.deployment import OWNER, local_deployment
    from launch.local.memory import peak_memory
    from models.calibration.record import FILE
    from models.checkpoint import read_architecture
    from parties.client.client import Client

    vocabulary = read_architecture(folder).vocabulary
    with local_deployment(PARTIES) as deployment:

        def stage() -> dict[str, int]:
            found = {child.name: _peak(child.pid) for child in deployment.children}
            party = max(found[f"party{i}"] for i in range(PARTIES))
            return {"client": _peak("self"), "party": party, "dealer": found["dealer"]}

        before: dict[str, Any] = {"start": stage(), "calibrates": not (folder / FILE).exists()}
        owner = 0

        def watch(*_: Any) -> None:
            nonlocal owner
            children = deployment._processes.children
            owner = max([owner, *(peak_memory(child.pid) for child in children if child.name == OWNER)])

        deployment.share_model(folder, "measured", on_progress=watch)
        before["share"] = {**stage(), "model owner": owner}
        client = Client(deployment.client)
        reference = client.find_model("measured")
        sessions = []
        for policy in case.policies:
            for length in case.lengths:
                prompt = [(7 * i + 3) % vocabulary for i in range(length)]
                found = _session(deployment, client, (prompt, case.suite, policy, reference), stage)
                if "load" in found:
                    before["load"] = found.pop("load")
                sessions.append({"policy": policy, "prompt": length, **found})
    return {"before": before, "sessions": sessions}


def _session(deployment: Any, client: Any, asked: tuple[Any, ...], stage: Any) -> dict[str, Any]:
    """Run one session; return the stages' memory, "load" only where weights were loaded, and seconds."""
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    prompt, suite, policy, reference = asked
    request = GenerationRequest(prompt, SamplingParams(NEW_TOKENS, ignore_eos=True), SuiteSpec(suite), policy, reference)
    found: dict[str, Any] = {}

    def on_progress(name: str, done: int, total: int) -> None:
        if name == "model load" and done == total and "load" not in found:
            found["load"] = stage()

    def on_token(token: int) -> None:
        if "prompt_memory" not in found:
            found["prompt_memory"] = stage()

    result = deployment.watched(lambda: client.generate(request, on_token=on_token, on_progress=on_progress))
    found["token"] = stage()
    time.sleep(estimate_seconds.SETTLED)  # a session's memory is its own, not also what the one before has not given back
    times = result.token_seconds
    found["seconds"] = {"prompt": times[0], "token": (times[-1] - times[0]) / max(1, len(times) - 1)}
    return found


# ---- predicted, and both together ----------------------------------------------------------------------------------------
def compare(folder: Path, case: Case, found: dict[str, Any]) -> list[Row]:
    """Return every role and stage that was measured, and the peaks, beside what is predicted."""
    from launch.cli.options import options_for
    from models.costs.estimation import estimate
    from models.costs.memory import ROLES, STAGES
    from models.costs.tracing import Setting
    from models.shapes import find_shape

    rows = []
    options = options_for(str(folder), case.suite, None)
    for session in found["sessions"]:
        setting = Setting(case.suite, PARTIES, session["policy"], options)
        predicted = estimate(find_shape(str(folder)), setting, session["prompt"], NEW_TOKENS).memory
        measured = {**found["before"], "prompt": session["prompt_memory"], "token": session["token"]}
        about = case.model, case.suite, session["policy"], session["prompt"]
        for role in ROLES:
            seen = {name: measured[name][role] for name in STAGES if role in measured.get(name, {})}
            rows += [Row(*about, role, name, count, predicted.stages[role][name]) for name, count in seen.items()]
            peak = predicted.peak(role)
            if role == "model owner":  # both of its stages are seen as one
                peak = peak if found["before"]["calibrates"] else predicted.stages[role]["share"]
                rows[-1] = replace(rows[-1], predicted=peak)
            rows.append(Row(*about, role, "peak", max(seen.values()), peak))
    return rows


def _run(case: Case, work: Path, repeat: int = 0) -> tuple[Path, dict[str, Any]]:
    """Measure a case in a process of its own; of seconds with so many repetitions, of memory with 0."""
    folder = checkpoint(case.model, work)
    asked = json.dumps({"folder": str(folder), "case": asdict(case), "repeat": repeat})
    done = subprocess.run([sys.executable, "-m", "tests.tools.estimate_check", "--one", asked], stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise SystemExit(f"{case.model}, {case.suite}: the deployment failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return folder, found


def _one(text: str) -> None:
    """Measure one case, in a process of its own."""
    asked = json.loads(text)
    given = asked["case"]
    case = Case(given["model"], given["suite"], tuple(given["lengths"]), tuple(given["policies"]))
    if asked["repeat"]:
        found = estimate_seconds.measure(Path(asked["folder"]), case.suite, case.policies, case.lengths, asked["repeat"])
    else:
        found = measure(Path(asked["folder"]), case)
    print(json.dumps(found), flush=True)
    os._exit(0)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the peaks as lines of Markdown: each role's measured bytes and what the prediction is off."""
    roles = list(dict.fromkeys(row.role for row in rows))
    lines = ["| model, suite, policy | prompt | " + " | ".join(roles) + " |", "| --- " * (len(roles) + 2) + "|"]
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if row.stage == "peak":
            name = f"{Path(row.model).name if '/' in row.model else row.model}, {row.suite}, {row.policy}"
            cells.setdefault((name, row.prompt), {})[row.role] = f"{row.measured / 1e9:.2f} GB, {100 * row.off:+.0f} %"
    for (name, prompt), found in cells.items():
        lines.append(f"| {name} | {prompt} | " + " | ".join(found.get(role, "") for role in roles) + " |")
    return lines


def _chosen(given: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases that are asked for."""
    for case in SECONDS if given.seconds else CASES:
        fits = given.suite in (None, case.suite) and any((given.policy or "") in policy for policy in case.policies)
        if fits and (given.only or "") in case.model:
            yield case if given.lengths is None else replace(case, lengths=tuple(map(int, given.lengths.split(","))))


def _seconds(given: argparse.Namespace) -> int:
    """Measure and compare seconds; return the exit code."""
    rows: list[Row] = []
    meanwhile = Meanwhile()
    with tempfile.TemporaryDirectory(prefix="mpcache-estimate-") as work:
        for case in _chosen(given):
            folder, found = _run(case, Path(work), given.repeat)
            rows += estimate_seconds.compare(folder, case.model, case.suite, found)
            if given.out is not None:
                given.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return estimate_seconds.report(rows, given.processor, meanwhile.stolen())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose model's name contains this")
    parser.add_argument("--suite", help="cases of this suite alone")
    parser.add_argument("--policy", help="cases with a policy whose name contains this")
    parser.add_argument("--lengths", help="these lengths of prompts in place of a case's own: 64,128")
    parser.add_argument("--out", type=Path, help="file for all rows, as JSON")
    parser.add_argument("--seconds", action="store_true", help="compare seconds in place of memory")
    parser.add_argument("--processor", action="store_true", help="with --seconds: exit code by processor seconds")
    parser.add_argument("--repeat", type=int, default=estimate_seconds.REPEAT, help="with --seconds: answers of each kind")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        _one(given.one)
    if given.seconds:
        return _seconds(given)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mpcache-estimate-") as work:
        for case in _chosen(given):
            folder, found = _run(case, Path(work))
            rows += compare(folder, case, found)
            print("\n".join(table(rows)), flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    wrong = [row for row in rows if row.stage == "peak" and abs(row.off) > LIMIT]
    for row in rows:
        if abs(row.off) > LIMIT:
            print(f"{row.model} {row.suite} {row.policy} {row.prompt}: {row.role}, {row.stage}: {row.off:+.0%}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
