"""Sessions in step against one alone, in the network lab: `python -m tests.tools.step_load` (as root; GPT-2 base takes some
16 GB and, on 2 processors, a quarter of an hour).

Each role runs in a process and a network of its own, with random weights of a GPT-2's shape. Told: tokens a second while
decoding of one session and of all that run in step, how many times that is, and seconds between tokens against alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import GPT2Config, GPT2LMHeadModel

from launch.lab import iproute
from launch.lab.lab import Lab
from launch.measure.load import IN_TURN, Asked, Load, run_load
from parties.client.client import Client
from protocols.registry import SuiteSpec
from tests.soak.deployment import CLIENT, DEALER, MODEL, OWNER, PARTIES, ROLES, SoakDeployment, prepare
from tests.soak.role import deal_tapes, share


@dataclass(frozen=True)
class Runs:
    """What is run. together: sessions in all; in_step: of them in each group; tapes: dealt beforehand, without a dealer."""

    network: str
    together: int
    in_step: int
    tapes: bool


def measured(runs: Runs, folder: Path, loads: dict[str, Load]) -> dict[str, dict[str, Any]]:
    """Return what each load gave, one after the other, behind a session that loads the weights."""
    loads = {"first": Load(1), **loads}
    with Lab(runs.network, ROLES, f"step-{os.getpid()}") as lab, lab.inside(CLIENT):
        limits = {"max_in_step": runs.in_step, "max_calls_per_client": 8 * runs.together}
        deployment = SoakDeployment(lab, folder, runs.together, runs.tapes, limits=limits)
        try:
            if runs.tapes:
                lengths, new = (
                    sorted({load.prompt for load in loads.values()}),
                    max(one.new_tokens for one in loads.values()),
                )
                given = (folder / f"{DEALER}.yaml", folder / "model", folder / "tapes", lengths, new, runs.together + 1)
                deployment.run(DEALER, deal_tapes, *given)
            deployment.start_all([*PARTIES, *([] if runs.tapes else [DEALER])])
            deployment.run(OWNER, share, folder / f"{OWNER}.yaml", folder / "model", MODEL)
            client = Client(deployment.config(CLIENT))
            asked = Asked(client, client.find_model(MODEL), SuiteSpec("masked"))
            found = {name: run_load(load, asked).to_json() for name, load in loads.items()}
            for name, result in found.items():
                assert not result["failed"], (name, result["sessions"])
            return found
        finally:
            deployment.stop()


def main(
    network: Annotated[str, typer.Option(help="A profile of the lab.")] = "wan",
    sessions: Annotated[int, typer.Option(min=2)] = 8,
    prompt: Annotated[int, typer.Option(min=1)] = 244,
    new: Annotated[int, typer.Option(min=2)] = 12,
    layers: Annotated[int, typer.Option(min=1)] = 12,
    width: Annotated[int, typer.Option(min=64, help="A multiple of 64, the channels of a head.")] = 768,
    vocabulary: Annotated[int, typer.Option(min=2)] = 50257,
    in_step: Annotated[int | None, typer.Option(min=1, help="Sessions of a group; all by default, 1: none in step.")] = None,
    tapes: Annotated[
        bool, typer.Option("--tapes", help="Dealt beforehand: no dealer runs beside (1.5 GB a session).")
    ] = False,
) -> None:
    """Run one session alone, then all of them in step."""
    if (why := iproute.problem()) is not None:
        raise SystemExit(f"error [environment]: {why}")
    shape = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "vocab_size": vocabulary}
    folder = Path(tempfile.mkdtemp(prefix="mpcache-step-"))
    prepare()
    try:
        config = GPT2Config(n_positions=max(32, prompt) + max(8, new), bos_token_id=0, eos_token_id=0, **shape)
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
        loads = {"alone": Load(1, IN_TURN, prompt, new), "in step": Load(sessions, "together", prompt, new, seed=2)}
        found = measured(Runs(network, sessions, in_step or sessions, tapes), folder, loads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    alone, together = found["alone"], found["in step"]
    rates = [one["decoding_tokens_per_second"] for one in (alone, together)]
    waits = [one["seconds_per_token"]["p50"] for one in (alone, together)]
    where = "tapes dealt beforehand" if tapes else "a dealer beside them"
    print(
        f"{sessions} sessions, {in_step or sessions} in step, {where}, {network}, {shape}, prompt {prompt}, {new} new tokens"
    )
    print(f"tokens a second while decoding: {rates[0]:.3f} alone, {rates[1]:.3f} in step: {rates[1] / rates[0]:.2f} times")
    print(f"seconds between tokens, p50: {waits[0]:.2f} alone, {waits[1]:.2f} in step: {waits[1] / waits[0]:.2f} times")
    print(f"rounds shared: {together['share_of_rounds_shared']:.1%}")
    print(json.dumps({name: {key: value for key, value in one.items() if key != "sessions"} for name, one in found.items()}))
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    typer.run(main)
