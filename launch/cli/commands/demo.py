"""`mpcache demo`: a private question to a private model, answered by real processes, checked and accounted for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import DEFAULT_SUITE, PartiesOption, PolicyOption, SuiteOption, options_for
from launch.demo.view import show_costs, show_processes, show_roles, show_verdict
from launch.local.checks import check_suite
from launch.terminal.console import err, out
from mpc.errors import ConfigurationError, EnvironmentProblem

if TYPE_CHECKING:
    from launch.demo.talks import Talk
    from launch.lab.lab import Lab
    from models.costs.tracing import Setting
    from models.recall.documents import Case

FAMILIES = ("gpt2", "llama")
DOCUMENT_TOKENS = 256
CHAT_TOKENS = 32  # of a short question in the real model's template


def run(
    suite: SuiteOption = DEFAULT_SUITE,
    real: Annotated[
        bool,
        typer.Option("--real", help="A real model, SmolLM2-135M: fetched where missing, 10 GB of memory, 1 to 2 minutes."),
    ] = False,
    family: Annotated[str | None, typer.Option("--family", help="The shipped model: gpt2 (default) or llama.")] = None,
    parties: PartiesOption = 2,
    policy: PolicyOption = "full",
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Length of document and question, in tokens; 256 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which document and question; 0 by default.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="With --real: tokens to generate; 8 by default.")
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="Show a page to talk to the model on, and what each role sees; nothing is opened.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="With --web: the page's port; by default a free one.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--lab", help="Run each role in a network namespace, over lan, wan, mobile or RTT_MS,MBIT (as root)."),
    ] = None,
) -> None:
    """Watch a client, compute parties, a dealer and a model owner answer a question about a private document.

    With --real, SmolLM2-135M-Instruct (from the cache, or fetched as `mpcache fetch smollm2` does) goes on with a sentence.
    With --web, the roles wait behind a local page, whose address is printed; it needs no network. Ctrl-C ends all of it.
    """
    from models.policies import parse

    check_suite(suite)
    parse(policy)
    _check_combination(real, {"--family": family, "--tokens": tokens, "--seed": seed}, {"--max-new-tokens": max_new_tokens})
    if web:
        if network is not None:
            raise ConfigurationError("--lab cannot be combined with --web, whose page is at this machine's own address")
        shipped = _talk(suite, family or "gpt2", DOCUMENT_TOKENS if tokens is None else tokens, seed or 0)
        with _real_talk(suite, parties, max_new_tokens) if real else shipped as talk:
            _web(talk, parties, policy, port or 0)
        return
    if port is not None:
        raise ConfigurationError("--port needs --web")
    lab = _lab(network, parties)
    if real:
        from launch.demo import real as real_demo

        real_demo.show(suite, parties, policy, max_new_tokens or real_demo.NEW_TOKENS, lab, _inside(lab))
        return
    length = DOCUMENT_TOKENS if tokens is None else tokens
    _recall(suite, family or "gpt2", parties, policy, length, seed or 0, lab)


@contextmanager
def _talk(suite: str, family: str, tokens: int, seed: int) -> Iterator[Talk]:
    """Give the shipped model with a document to ask about. Raises `ConfigurationError`."""
    from launch.demo.talks import Talk, example, words_of
    from protocols.registry import SuiteSpec

    directory, case = _model(family), _case(tokens, seed)
    with words_of(directory) as words:
        yield Talk(directory, words, f"recall-{family}", SuiteSpec(suite), example(case), tokens)


@contextmanager
def _real_talk(suite: str, parties: int, new_tokens: int | None) -> Iterator[Talk]:
    """Give the real model. Raises `EnvironmentProblem` when it cannot be had."""
    from launch.demo.real import MODEL, check_memory, model_folder, real_suite_options
    from launch.demo.talks import Example, Talk
    from protocols.registry import SuiteSpec

    check_memory(parties)
    folder = model_folder()
    spec = SuiteSpec(suite, options=real_suite_options(folder, suite))
    asked = Example(message="What is the capital of France?", max_tokens=new_tokens or 16)
    yield Talk(folder, folder, MODEL, spec, asked, CHAT_TOKENS)


def _web(talk: Talk, parties: int, policy: str, port: int) -> None:
    """Serve the page until Ctrl-C. Raises `ConfigurationError` for a policy that the model cannot have, before anything
    starts."""
    from launch.demo.web import WebDemo, show
    from models.checkpoint import read_architecture
    from models.generation import GenerationPlan

    GenerationPlan(talk.prompt_tokens, talk.example.max_tokens, policy=policy).check(read_architecture(talk.model))
    setting = _setting(talk.model, talk.suite.name, parties, policy)
    setting = replace(setting, options={**setting.options, **talk.suite.options})
    _check_memory(talk.model, setting, talk.prompt_tokens, talk.example.max_tokens)
    show(WebDemo(talk, parties, policy, f"127.0.0.1:{port}"), lambda line: out.print(line, soft_wrap=True, markup=False))


def _setting(folder: Path, suite: str, parties: int, policy: str) -> Setting:
    """Return what a session of a checkpoint runs with."""
    from models.costs.tracing import Setting

    return Setting(suite, parties, policy, options_for(str(folder), suite, None))


def _check_memory(folder: Path, setting: Setting, prompt: int, new: int) -> None:
    """Raise `EnvironmentProblem`, before anything starts, where this machine has no room for all roles."""
    from launch.predict.room import check_session
    from models.checkpoint import read_architecture

    check_session(read_architecture(folder), setting, prompt, new)


def _check_combination(real: bool, shipped: dict[str, object], only_real: dict[str, object]) -> None:
    """Raise `ConfigurationError` for an option that this demo has no use for."""
    for option, value in (shipped if real else only_real).items():
        if value is not None:
            other = "--real, which has a prompt of its own" if real else "the shipped model: it needs --real"
            raise ConfigurationError(f"{option} cannot be combined with {other}")


def _recall(suite: str, family: str, parties: int, policy: str, tokens: int, seed: int, lab: Lab | None) -> None:
    """Let the shipped model answer a question about a document."""
    started = time.perf_counter()
    directory, case = _model(family), _case(tokens, seed)
    _introduce(case, tokens)

    from launch.local.deployment import local_deployment
    from launch.terminal.answering import Asking
    from models.checkpoint import load_checkpoint
    from models.generation import GenerationPlan, generate_plain
    from models.recall.documents import ANSWER_TOKENS
    from parties.client.client import Client
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    checkpoint = load_checkpoint(directory)
    ids = checkpoint.tokenizer.encode(case.prompt)
    plan = GenerationPlan(tokens, ANSWER_TOKENS, policy=policy)
    plan.check(checkpoint.architecture)
    _check_memory(directory, _setting(directory, suite, parties, policy), tokens, ANSWER_TOKENS)
    waiting = err.status("starting processes (temporary certificates, mutual TLS)")
    with waiting, _inside(lab), local_deployment(parties, lab=lab) as deployment:
        waiting.update("the model owner shares the weights")
        deployment.share_model(directory, f"recall-{family}")
        waiting.stop()
        show_processes(deployment, f"recall-{family}", checkpoint.architecture.parameters())
        out.print(f"\n[bold]Answer[/bold] (computed on shares by the suite {suite}, opened by the client alone)")
        if policy != "full":
            out.print(f"[dim]Cache policy {policy}: tokens that it drops or leaves out may cost the answer.[/dim]")
        request = GenerationRequest(ids, SamplingParams(ANSWER_TOKENS), SuiteSpec(suite), policy, f"recall-{family}")
        asking = Asking(Client(deployment.client), checkpoint.tokenizer, watched=deployment.watched)
        given = asking.answer(request)
    given.result.check_range(given.text)
    plain = generate_plain(checkpoint, ids, plan)
    equal = plain == given.result.tokens
    out.print("\n[bold]Check[/bold] (only in this demo does the client look at the model)")
    show_verdict("the model in plaintext says", checkpoint.tokenizer.decode(plain), equal)
    show_verdict("the record in the document", case.answer, given.text.split() == case.answer.split())
    show_costs(given.result.costs, given.result.token_seconds[0], given.seconds_per_token)
    out.print(f"\nEverything took {time.perf_counter() - started:.0f} s; no process and no file is left.")
    if not equal:
        raise typer.Exit(1)


def _lab(network: str | None, parties: int) -> Lab | None:
    """Return the lab that is asked for, not made yet."""
    if network is None:
        return None
    from launch.lab.lab import Lab, roles_for

    return Lab(network, roles_for(parties))


@contextmanager
def _inside(lab: Lab | None) -> Iterator[None]:
    """Make this process the lab's client."""
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
    show_roles()
    document, _, question = case.prompt.rpartition("?")
    words = document.split()
    shown = " ".join(words[:16])
    out.print(f"\n[bold]Private document[/bold] ({tokens} tokens with the question)\n  {shown} ...")
    out.print(f"[bold]Private question[/bold]\n  ?{question}")
