"""`mpcache generate`: answer one prompt, with processes of its own or with running parties."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    ChunksOption,
    DecodingOption,
    DraftOption,
    FixedLengthOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    PrefixOption,
    RepairOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustAuthorityOption,
    chosen_decoding,
    chosen_draft,
    read_prompt,
    suite_options,
)
from launch.local.checks import check_device, check_suite
from launch.terminal.console import err, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.terminal.answering import Answer
    from models.architecture import Architecture
    from models.tokenizer.text import TextTokenizer
    from parties.client.request import GenerationRequest
    from parties.config.role_config import RoleConfig

PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", help="The prompt. Other users of this machine may see it; --prompt-file keeps it private."),
]
PromptFileOption = Annotated[Path | None, typer.Option("--prompt-file", help="File with the prompt; - for standard input.")]
StartedPartiesOption = Annotated[
    int | None, typer.Option("--parties", min=2, max=16, help="Compute parties to start; 2 by default.")
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to generate.")]
StartedDeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where the started parties compute: cpu, cuda ...")
]
ClientConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A client's configuration: ask these parties instead of starting some.")
]
SharedNameOption = Annotated[
    str | None, typer.Option("--name", help="With --config: the shared model's name or id; default: the folder's name.")
]


@dataclass(frozen=True)
class _Started:
    """The processes that a command starts: so many compute parties, each computing on `device`."""

    parties: int
    device: str


def run(
    model: ModelOption,
    prompt: PromptOption = None,
    prompt_file: PromptFileOption = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: StartedPartiesOption = None,
    max_new_tokens: MaxNewTokensOption = 32,
    decoding: DecodingOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    fixed_length: FixedLengthOption = False,
    draft: DraftOption = "off",
    prefix: PrefixOption = None,
    chunks: ChunksOption = None,
    repair: RepairOption = 0.2,
    suite_option: SuiteOptionsOption = None,
    device: StartedDeviceOption = None,
    config: ClientConfigOption = None,
    name: SharedNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate text on secret shares.

    Without --config, two or more compute parties, a dealer and a model owner run as temporary processes of this machine.
    With --config, running parties that hold the model are asked, and --model gives only config.json and the tokenizer.
    Exit code 3 when a value left its declared range: the answer then ends before the token that would be wrong, and the
    last line says what to do.
    """
    text = read_prompt(prompt, prompt_file)
    assert text is not None
    check_suite(suite)
    check_combination(config, {"--parties": parties, "--device": device}, insecure_trust_authority, name)
    if (prefix is not None or chunks is not None) and config is None:
        raise ConfigurationError("--prefix and --chunks need --config: parties that are started for one answer hold none")
    from models.generation import check_verifiable
    from models.policies import parse
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    chosen = chosen_decoding(decoding, temperature)
    params = SamplingParams(max_new_tokens, chosen, temperature, top_k, top_p, fixed_length=fixed_length)
    spec = SuiteSpec(suite, options=suite_options(suite_option))
    request = GenerationRequest((), params, spec, policy, draft=chosen_draft(draft), prefix=prefix)
    request = replace(request, chunks=tuple((chunks or "").split(",")) if chunks else (), repair=repair)
    if request.draft is not None:
        check_verifiable(chosen, parse(policy), request.draft.plan)
    if config is not None:
        from launch.serve.roles import load_role

        settings = load_role(config, "client", insecure_trust_authority)
        answer = _ask_running(settings, model, text, replace(request, model=name), not as_json)
    else:
        answer = _ask_local(model, text, request, _Started(parties or 2, check_device(device or "cpu")), not as_json)
    _show(answer, request, as_json)
    answer.result.check_range(answer.text)


def _show(answer: Answer, request: GenerationRequest, as_json: bool) -> None:
    """Print what the answer took, or all of it as JSON: its text was shown as it came."""
    if as_json:
        print_json(answer_json(answer, request))
        return
    if dropped := answer.result.dropped_choices:
        err.print(
            f"experts of layers with few places were full: {dropped} choices of the prompt's tokens were left out; "
            "--suite-option experts=dense leaves out none"
        )
    if (first := answer.result.first_token_seconds) is not None:
        each = f", {answer.seconds_per_token:.2f} s a token" if answer.seconds_per_token is not None else ""
        tokens = f"{answer.prompt_tokens} + {len(answer.result.tokens)} tokens"
        err.print(f"{tokens}, suite {request.suite.name}: first after {first:.2f} s{each}")


def check_combination(config: Path | None, of_started: dict[str, object], trust_authority: bool, name: str | None) -> None:
    """Raise `ConfigurationError` for options that go with running parties alone, or with started ones alone."""
    if config is not None:
        for option, value in of_started.items():
            if value is not None:
                raise ConfigurationError(f"{option} cannot be combined with --config: running parties have their own")
    elif trust_authority:
        raise ConfigurationError("--insecure-trust-authority needs --config: without it the keys of all roles are known")
    elif name is not None:
        raise ConfigurationError("--name needs --config: without it the only model is the one of --model")


def answer_json(answer: Answer, request: GenerationRequest) -> dict[str, Any]:
    """Return the answer and its costs, for programs."""
    from launch.terminal.session_costs import costs_json

    costs = costs_json(answer.result.costs)
    if request.draft is not None:
        costs = {**costs, "steps": costs["further_tokens"], "further_tokens": max(0, len(answer.result.tokens) - 1)}
    return {
        "text": answer.text,
        "tokens": answer.result.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.result.finish_reason,
        "findings": [finding.to_json() for finding in answer.result.findings],
        "dropped_choices": answer.result.dropped_choices,
        "suite": request.suite.name,
        "decoding": request.params.decoding,
        "draft": 0 if request.draft is None else request.draft.plan.tokens,
        "prefix": None if answer.result.prefix is None else answer.result.prefix.name,
        "session": answer.result.session,
        "seconds": answer.result.seconds,
        "first_token_seconds": answer.result.first_token_seconds,
        "seconds_per_token": answer.seconds_per_token,
        "costs": costs,
    }


def _ask_local(directory: Path, text: str, request: GenerationRequest, started: _Started, streaming: bool) -> Answer:
    from launch.checkpoints.calibrating import calibration_for
    from launch.local.deployment import local_deployment
    from launch.terminal.answering import answer
    from models.checkpoint import load_checkpoint
    from parties.client.client import Client

    checkpoint = load_checkpoint(directory)
    request = _of_prompt(request, checkpoint.tokenizer, text, checkpoint.architecture)
    calibration = calibration_for(directory, request.suite)
    shared_name = directory.resolve().name
    with err.status("starting processes") as status, local_deployment(started.parties, started.device) as deployment:
        status.update("sharing the model")
        deployment.share_model(directory, shared_name, calibration.suites)
        status.stop()
        client = Client(deployment.client)
        return answer(client, checkpoint.tokenizer, replace(request, model=shared_name), streaming, deployment.watched)


def _of_prompt(
    request: GenerationRequest, tokenizer: TextTokenizer, text: str, architecture: Architecture
) -> GenerationRequest:
    """Return the request with this prompt. What the model cannot do is refused before anything is started or sent."""
    from models.generation import token_indices
    from parties.client.prefixes import continues

    begins = not continues(request.prefix) and not request.chunks
    request = replace(request, prompt_ids=tokenizer.encode(text, special=begins))
    token_indices(request.prompt_ids, architecture.vocabulary)
    request.plan().check(architecture)
    if request.draft is not None:
        request.draft.check(architecture, tokenizer)
    return request


def _ask_running(config: RoleConfig, directory: Path, text: str, request: GenerationRequest, streaming: bool) -> Answer:
    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.terminal.answering import answer
    from models.checkpoint import load_tokenizer, read_architecture
    from parties.client.client import Client
    from parties.client.model_reference import ModelReference

    client = Client(config)
    architecture = read_architecture(directory)
    tokenizer = load_tokenizer(directory, architecture)
    assert not isinstance(request.model, ModelReference)
    reference = client.find_model(request.model or directory.resolve().name)
    if reference.architecture != architecture:
        raise ConfigurationError(
            f"--model {directory} describes another architecture than the shared model '{reference.name}'; "
            "give the folder whose config.json and tokenizer belong to it"
        )
    request = _of_prompt(replace(request, model=reference), tokenizer, text, architecture)
    warn_if_never_calibrated(reference)
    return answer(client, tokenizer, request, streaming)
