"""`mpcache generate`: answer one prompt, with processes of its own or with running parties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    DecodingOption,
    FixedLengthOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustAuthorityOption,
    check_device,
    check_suite,
    make_wishes,
    read_prompt,
)
from launch.terminal.console import err, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.cli.answering import Answer, Wishes
    from models.checkpoint import Checkpoint
    from parties.config.role_config import RoleConfig


def run(
    model: ModelOption,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="The prompt. Other users of this machine may see it; --prompt-file keeps it private."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="File with the prompt; - for standard input.")
    ] = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: Annotated[
        int | None, typer.Option("--parties", min=2, max=16, help="Compute parties to start; 2 by default.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to generate.")] = 32,
    decoding: DecodingOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    fixed_length: FixedLengthOption = False,
    suite_option: SuiteOptionsOption = None,
    device: Annotated[str | None, typer.Option("--device", help="Where the started parties compute: cpu, cuda ...")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A client's configuration: ask these parties instead of starting some.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="With --config: the shared model's name or id; default: the folder's name.")
    ] = None,
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
    if config is not None:
        for option, value in (("--parties", parties), ("--device", device)):
            if value is not None:
                raise ConfigurationError(f"{option} cannot be combined with --config: running parties have their own")
    elif insecure_trust_authority:
        raise ConfigurationError("--insecure-trust-authority needs --config: without it the keys of all roles are known")
    elif name is not None:
        raise ConfigurationError("--name needs --config: without it the only model is the one of --model")
    wishes = make_wishes(suite, max_new_tokens, decoding, temperature, top_k, top_p, suite_option, policy, fixed_length)
    if config is not None:
        from launch.serve.roles import load_role

        settings = load_role(config, "client", insecure_trust_authority)
        answer = _ask_running(settings, model, name, text, wishes, not as_json)
    else:
        answer = _ask_local(model, text, wishes, parties or 2, check_device(device or "cpu"), not as_json)
    if as_json:
        print_json(answer_json(answer, wishes))
    elif (first := answer.result.first_token_seconds) is not None:
        each = f", {answer.seconds_per_token:.2f} s a token" if answer.seconds_per_token is not None else ""
        err.print(
            f"{answer.prompt_tokens} + {len(answer.result.tokens)} tokens, suite {suite}: first after {first:.2f} s{each}"
        )
    answer.result.check_range(answer.text)


def answer_json(answer: Answer, wishes: Wishes) -> dict[str, Any]:
    """The answer and its costs, for programs."""
    from launch.terminal.session_costs import costs_json

    return {
        "text": answer.text,
        "tokens": answer.result.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.result.finish_reason,
        "findings": [finding.to_json() for finding in answer.result.findings],
        "suite": wishes.suite,
        "decoding": wishes.decoding,
        "session": answer.result.session,
        "seconds": answer.result.seconds,
        "first_token_seconds": answer.result.first_token_seconds,
        "seconds_per_token": answer.seconds_per_token,
        "costs": costs_json(answer.result.costs),
    }


def _ask_local(directory: Path, text: str, wishes: Wishes, parties: int, device: str, streaming: bool) -> Answer:
    from launch.checkpoints.calibrating import calibration_for
    from launch.cli.answering import answer
    from launch.local.deployment import local_deployment
    from models.checkpoint import load_checkpoint
    from parties.client.client import Client

    checkpoint = load_checkpoint(directory)
    _check_lengths(checkpoint, text, wishes)
    calibration = calibration_for(directory, wishes.suite, wishes.options)
    shared_name = directory.resolve().name
    with err.status("starting processes") as status, local_deployment(parties, device) as deployment:
        status.update("sharing the model")
        deployment.share_model(directory, shared_name, calibration.suites)
        status.stop()
        client = Client(deployment.client)
        return answer(client, checkpoint.tokenizer, text, shared_name, wishes, streaming, deployment.watched)


def _check_lengths(checkpoint: Checkpoint, text: str, wishes: Wishes) -> None:
    """Refuse what the model cannot do before any process is started."""
    from models.generation import GenerationPlan, token_indices
    from parties.client.client import check_decoding

    ids = checkpoint.tokenizer.encode(text)
    token_indices(ids, checkpoint.architecture.vocabulary)
    agreed = check_decoding(wishes.decoding, wishes.temperature, wishes.top_k, wishes.top_p)
    agreed = agreed if wishes.decoding == "sample" else None
    plan = GenerationPlan(len(ids), wishes.new_tokens, wishes.decoding, temperature=agreed)
    plan.check(checkpoint.architecture)


def _ask_running(
    config: RoleConfig, directory: Path, name: str | None, text: str, wishes: Wishes, streaming: bool
) -> Answer:
    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.cli.answering import answer
    from models.checkpoint import read_architecture
    from models.tokenizer.text import TextTokenizer
    from parties.client.client import Client

    client = Client(config)
    architecture = read_architecture(directory)
    tokenizer = TextTokenizer.load(directory, architecture.eos)
    reference = client.find_model(name or directory.resolve().name)
    if reference.architecture != architecture:
        raise ConfigurationError(
            f"--model {directory} describes another architecture than the shared model '{reference.name}'; "
            "give the folder whose config.json and tokenizer belong to it"
        )
    warn_if_never_calibrated(reference)
    return answer(client, tokenizer, text, reference, wishes, streaming)
