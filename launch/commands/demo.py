"""`mpcache demo`: a private question to a private model, answered by real processes, checked and accounted for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.console import err, out
from launch.options import DEFAULT_SUITE, PartiesOption, PolicyOption, SuiteOption, check_suite
from mpc.errors import ConfigurationError, EnvironmentProblem

if TYPE_CHECKING:
    from launch.lab.lab import Lab
    from launch.local import LocalDeployment
    from models.recall.documents import Case

FAMILIES = ("gpt2", "llama")
WHO = (
    ("client", "has document and question; alone sees the answer"),
    ("model owner", "has the weights; shares them once, then leaves"),
    ("compute parties", "compute on shares, each uniformly random; see lengths only"),
    ("dealer", "deals correlated randomness; sees no data and no share"),
)


def run(
    suite: SuiteOption = DEFAULT_SUITE,
    family: Annotated[str, typer.Option("--family", help="The shipped model: gpt2 or llama.")] = "gpt2",
    parties: PartiesOption = 2,
    policy: PolicyOption = "full",
    tokens: Annotated[int, typer.Option("--tokens", help="Length of document and question, in tokens.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Which document and question.")] = 0,
    network: Annotated[
        str | None,
        typer.Option("--lab", help="Run each role in a network namespace, over lan, wan, mobile or RTT_MS,MBIT (as root)."),
    ] = None,
) -> None:
    """Watch a client, compute parties, a dealer and a model owner answer a question about a private document."""
    check_suite(suite)
    lab = _lab(network, parties)
    started = time.perf_counter()
    directory, case = _model(family), _case(tokens, seed)
    _introduce(case, tokens)

    from launch.answering import Wishes, answer
    from launch.local import local_deployment
    from models.checkpoint import load_checkpoint
    from models.generation import GenerationPlan, generate_plain
    from models.recall.documents import ANSWER_TOKENS
    from parties.client import Client

    checkpoint = load_checkpoint(directory)
    plan = GenerationPlan(tokens, ANSWER_TOKENS, policy=policy)
    plan.check(checkpoint.architecture)
    waiting = err.status("starting processes (temporary certificates, mutual TLS)")
    with waiting, _inside(lab), local_deployment(parties, lab=lab) as deployment:
        waiting.update("the model owner shares the weights")
        deployment.share_model(directory, f"recall-{family}")
        waiting.stop()
        _list_processes(deployment, family, checkpoint.architecture.parameters())
        out.print(f"\n[bold]Answer[/bold] (computed on shares by the suite {suite}, opened by the client alone)")
        if policy != "full":
            out.print(f"[dim]Cache policy {policy}: tokens that it drops or leaves out may cost the answer.[/dim]")
        wishes = Wishes(suite, ANSWER_TOKENS, policy=policy)
        client = Client(deployment.client)
        given = answer(client, checkpoint.tokenizer, case.prompt, f"recall-{family}", wishes, watched=deployment.watched)
    given.result.check_range(given.text)
    ids = checkpoint.tokenizer.encode(case.prompt)
    plain = generate_plain(checkpoint, ids, plan)
    equal = plain == given.result.tokens
    out.print("\n[bold]Check[/bold] (only in this demo does the client look at the model)")
    _verdict("the model in plaintext says", checkpoint.tokenizer.decode(plain), equal)
    _verdict("the record in the document", case.answer, given.text.split() == case.answer.split())
    _show_costs(given.result.costs, given.result.token_seconds[0], given.seconds_per_token)
    out.print(f"\nEverything took {time.perf_counter() - started:.0f} s; no process and no file is left.")
    if not equal:
        raise typer.Exit(1)


def _lab(network: str | None, parties: int) -> Lab | None:
    """The lab that is asked for, not made yet."""
    if network is None:
        return None
    from launch.lab.lab import Lab, roles_for

    return Lab(network, roles_for(parties))


@contextmanager
def _inside(lab: Lab | None) -> Iterator[None]:
    """This process is the lab's client."""
    if lab is None:
        yield
        return
    with lab, lab.inside("client"):
        shown = lab.network
        out.print(
            f"\n[bold]Network[/bold]\n  a namespace for each role, {shown.bandwidth / 1e6:g} Mbit/s, round trip "
            f"{shown.round_trip * 1e3:g} ms"
        )
        yield


def _model(family: str) -> Path:
    if family not in FAMILIES:
        raise ConfigurationError(f"--family '{family}' is unknown; choose one of: {', '.join(FAMILIES)}")
    import models.recall

    directory = Path(models.recall.__file__).parent / family
    if not (directory / "model.safetensors").exists():
        raise EnvironmentProblem(f"the shipped model {directory} is missing; get a complete copy of the repository")
    return directory


def _case(tokens: int, seed: int) -> Case:
    from models.recall.documents import ANSWER_TOKENS, MAX_DOCUMENT_TOKENS, QUESTION_TOKENS, evaluation_cases

    most, least = min(MAX_DOCUMENT_TOKENS + QUESTION_TOKENS, 1024 - ANSWER_TOKENS), 16
    if not least <= tokens <= most:
        raise ConfigurationError(f"--tokens {tokens}: the shipped model answers for {least} to {most} tokens")
    if seed < 0:
        raise ConfigurationError(f"--seed {seed}: must not be negative")
    return evaluation_cases(tokens, 1, seed)[0]


def _introduce(case: Case, tokens: int) -> None:
    who = Table.grid(padding=(0, 2))
    for name, role in WHO:
        who.add_row(Text(name, style="bold"), role)
    out.print(Panel(who, title="Who sees what", title_align="left", expand=False))
    document, _, question = case.prompt.rpartition("?")
    words = document.split()
    shown = " ".join(words[:16])
    out.print(f"\n[bold]Private document[/bold] ({tokens} tokens with the question)\n  {shown} ...")
    out.print(f"[bold]Private question[/bold]\n  ?{question}")


def _list_processes(deployment: LocalDeployment, family: str, parameters: int) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("  client", f"process {os.getpid()}", "this one")
    for child in deployment.children:
        table.add_row(f"  {child.name}", f"process {child.pid}", f"at {child.ready['address']}" if child.ready else "")
    table.add_row("  model-owner", "ended", f"has shared {parameters:,} weights of the model recall-{family}")
    out.print("\n[bold]Processes[/bold]")
    out.print(table)


def _verdict(what: str, value: str, same: bool) -> None:
    mark = Text("equal", style="bold green") if same else Text("DIFFERENT", style="bold red")
    out.print(Text.assemble(f"  {what:<28}{value.strip()}   ", mark))


def _show_costs(costs: dict[str, dict[str, object]], first: float, each: float | None) -> None:
    from launch.report import cost_tables

    rate = f", then {each:.2f} s a token" if each is not None else ""
    out.print(f"\n[bold]Cost[/bold] (first token after {first:.1f} s{rate})")
    out.print("sends: bytes to the other parties; offline: bytes from the dealer, which no input is needed for.")
    for table in cost_tables(costs):
        out.print(table)
