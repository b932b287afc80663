"""`mpcache client`: what the parties hold, and a prompt per line of standard input."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from launch.cli.options import (
    DEFAULT_SUITE,
    ConfigOption,
    DecodingOption,
    DraftOption,
    FixedLengthOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustAuthorityOption,
    chosen_decoding,
    chosen_draft,
    suite_options,
    tokenizer_option,
)
from launch.local.checks import check_suite
from launch.terminal.console import RANGE_EXIT, err, out, show_error
from launch.terminal.texts import decode_text

if TYPE_CHECKING:
    from models.tokenizer.text import TextTokenizer
    from parties.client.client import Client
    from parties.client.request import GenerationRequest

TokenizerOption = Annotated[Path | None, tokenizer_option()]
ModelNameOption = Annotated[str | None, typer.Option("--name", help="The model's name or id; by default the only one.")]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to generate.")]


def run(
    config: ConfigOption,
    tokenizer: TokenizerOption = None,
    name: ModelNameOption = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    max_new_tokens: MaxNewTokensOption = 32,
    decoding: DecodingOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    fixed_length: FixedLengthOption = False,
    draft: DraftOption = "off",
    suite_option: SuiteOptionsOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """List the models that all parties hold; with --tokenizer, answer each line of standard input.

    When a value leaves its declared range, that answer ends before the token that would be wrong, and a line of standard
    error says so; the next prompt is answered, and the exit code is 3 in the end.
    """
    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.serve.roles import load_role
    from models.checkpoint import load_tokenizer, read_architecture
    from models.generation import check_verifiable
    from models.policies import parse
    from parties.client.client import Client
    from parties.client.model_reference import check_folder
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    check_suite(suite)
    client = Client(load_role(config, "client", insecure_trust_authority))
    if tokenizer is None:
        _list_models(client)
        return
    architecture = read_architecture(tokenizer)
    words = load_tokenizer(tokenizer, architecture)
    chosen = chosen_decoding(decoding, temperature)
    params = SamplingParams(max_new_tokens, chosen, temperature, top_k, top_p, fixed_length=fixed_length)
    spec = SuiteSpec(suite, options=suite_options(suite_option))
    reference = client.find_model(name)
    check_folder(tokenizer, architecture, words, reference)
    request = GenerationRequest((), params, spec, policy, reference, chosen_draft(draft))
    if request.draft is not None:
        check_verifiable(chosen, parse(policy), request.draft.plan)
        request.draft.check(reference.architecture, words)
    warn_if_never_calibrated(reference)
    if not _answer_lines(client, words, request):
        raise typer.Exit(RANGE_EXIT)


def _list_models(client: Client) -> None:
    with err.status("asking the parties") as status:
        held = client.models(lambda reason: status.update(f"waiting for {reason}"))
    table = Table(box=None, header_style="bold")
    for column in ("model", "id", "owner", "family", "layers", "vocabulary", "positions", "bounds"):
        table.add_column(column, overflow="fold")
    for m in held:
        a = m.description
        said = "usual" if m.ranges is None else "own"
        table.add_row(m.name, m.id, m.owner, a.family, str(a.layers), str(a.vocabulary), str(a.positions), said)
    out.print(table if held else "no model is held by all parties; let the model owner share one")


def _answer_lines(client: Client, words: TextTokenizer, request: GenerationRequest) -> bool:
    """Answer each line of standard input. Return whether all values stayed in their ranges."""
    from launch.terminal.answering import Asking
    from parties.errors import RangeExceeded

    asking = Asking(client, words)
    interactive, number, right = sys.stdin.isatty(), 0, True
    while True:
        if interactive:
            err.print("prompt> ", end="")
        data = sys.stdin.buffer.readline()
        if not data:
            return right
        number += 1
        line = decode_text(data, f"line {number} of standard input")
        if line.strip():
            try:
                given = asking.answer(replace(request, prompt_ids=words.encode(line.rstrip("\n"))))
                given.result.check_range(given.text)
            except RangeExceeded as error:
                show_error(error)
                right = False
