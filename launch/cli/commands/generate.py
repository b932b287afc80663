"""`mpcache generate`: answer one prompt, with processes of its own or with running parties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.asking import Place, Started, messages, partner
from launch.cli.options import (
    DEFAULT_SUITE,
    CandidatesOption,
    ChunksOption,
    DecodingOption,
    DraftOption,
    FixedLengthOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    PrefixOption,
    PromptBucketsOption,
    RepairOption,
    RetrievalOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustAuthorityOption,
    chosen_decoding,
    chosen_draft,
    prompt_buckets,
    read_prompt,
    suite_options,
)
from launch.local.checks import check_device, check_suite
from launch.terminal.console import err, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.terminal.answering import Answer
    from parties.client.prefixes import ChunkChoice
    from parties.client.request import GenerationRequest

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


ChatOption = Annotated[
    bool, typer.Option("--chat", help="The prompt is a user's message: the checkpoint's chat template is put around it.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="The system's message before the prompt; implies --chat.")
]


def run(
    model: ModelOption,
    prompt: PromptOption = None,
    prompt_file: PromptFileOption = None,
    chat: ChatOption = False,
    system: SystemOption = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: StartedPartiesOption = None,
    max_new_tokens: MaxNewTokensOption = 32,
    decoding: DecodingOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    fixed_length: FixedLengthOption = False,
    buckets: PromptBucketsOption = None,
    draft: DraftOption = "off",
    prefix: PrefixOption = None,
    chunks: ChunksOption = None,
    repair: RepairOption = 0.2,
    retrieval: RetrievalOption = "secret",
    candidates: CandidatesOption = None,
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
    With --chat or --system the prompt is a message, and the answer ends with the assistant's turn; `mpcache chat` goes on.
    Exit code 3 when a value left its declared range: the answer then ends before the token that would be wrong, and the
    last line says what to do.
    """
    text = read_prompt(prompt, prompt_file)
    assert text is not None
    check_suite(suite)
    check_combination(config, {"--parties": parties, "--device": device}, insecure_trust_authority, name)
    check_held(config, prefix, chunks)
    from launch.serve.roles import load_role
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    spec, chosen = SuiteSpec(suite, options=suite_options(suite_option)), chosen_decoding(decoding, temperature)
    params = SamplingParams(max_new_tokens, chosen, temperature, top_k, top_p, fixed_length=fixed_length)
    between = chunk_choice(chunks, repair, retrieval, candidates)
    drafting, lengths = chosen_draft(draft), prompt_buckets(buckets)
    request = GenerationRequest((), params, spec, policy, None, drafting, prefix, between, lengths)
    check_draft(request)
    asked = messages(system, text) if chat or system is not None else text
    settings = None if config is None else load_role(config, "client", insecure_trust_authority)
    place = Place(model, Started(parties or 2, check_device(device or "cpu")), settings, name)
    with partner(place, request, asked, not as_json) as found:
        answer = found.answer(asked)
    _show(answer, request, as_json)
    answer.result.check_range(answer.text)


def check_draft(request: GenerationRequest) -> None:
    """Raise `ConfigurationError` for a draft that cannot be verified."""
    from models.generation import check_verifiable
    from models.policies import parse

    policy = parse(request.policy)
    if request.draft is not None:
        check_verifiable(request.params.decoding, policy, request.draft.plan)


def check_held(config: Path | None, prefix: str | None, chunks: str | None) -> None:
    """Raise `ConfigurationError` for registered texts where nobody can hold them."""
    if (prefix is not None or chunks is not None) and config is None:
        raise ConfigurationError("--prefix and --chunks need --config: parties that are started for one answer hold none")


def chunk_choice(chunks: str | None, repair: float, retrieval: str, candidates: str | None) -> ChunkChoice:
    """Return what is asked of chunks; names are separated by commas."""
    from parties.client.prefixes import ChunkChoice

    names, among = (tuple(given.split(",")) if given else None for given in (chunks, candidates))
    return ChunkChoice(names or (), repair, retrieval, among)


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
