"""`mpcache chat`: a conversation, message by message, with processes of its own or with running parties."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.asking import Place, Started, messages, partner
from launch.cli.commands.generate import (
    ClientConfigOption,
    MaxNewTokensOption,
    SharedNameOption,
    StartedDeviceOption,
    StartedPartiesOption,
    check_combination,
)
from launch.cli.options import (
    DEFAULT_SUITE,
    FixedLengthOption,
    ModelOption,
    PolicyOption,
    PromptBucketsOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    TrustAuthorityOption,
    chosen_decoding,
    prompt_buckets,
    suite_options,
)
from launch.local.checks import check_device, check_suite
from launch.terminal.console import RANGE_EXIT, err, show_error
from launch.terminal.texts import decode_text

if TYPE_CHECKING:
    from launch.cli.asking import Partner

SHORTEST = "?"  # a message that stands for the first one in what is checked before anything starts


def run(
    model: ModelOption,
    system: Annotated[str | None, typer.Option("--system", help="The system's message before the conversation.")] = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: StartedPartiesOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = None,
    fixed_length: FixedLengthOption = False,
    buckets: PromptBucketsOption = None,
    suite_option: SuiteOptionsOption = None,
    device: StartedDeviceOption = None,
    config: ClientConfigOption = None,
    name: SharedNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """Talk to a model on secret shares: a message a line of standard input, answered with all that was said before.

    Parties and their processes are those of `mpcache generate`; the checkpoint's chat template makes the prompt. A message
    that cannot be answered (the conversation has become too long, say) is left out of it, and the next one is read. Exit
    code 3 when a value left its declared range in some answer.
    """
    check_suite(suite)
    check_combination(config, {"--parties": parties, "--device": device}, insecure_trust_authority, name)
    from launch.serve.roles import load_role
    from models.policies import parse
    from parties.client.request import GenerationRequest
    from parties.client.sampling_params import SamplingParams
    from protocols.registry import SuiteSpec

    parse(policy)
    decoding = chosen_decoding(None, temperature)
    params = SamplingParams(max_new_tokens, decoding, temperature, fixed_length=fixed_length)
    spec, lengths = SuiteSpec(suite, options=suite_options(suite_option)), prompt_buckets(buckets)
    request = GenerationRequest((), params, spec, policy, prompt_buckets=lengths)
    settings = None if config is None else load_role(config, "client", insecure_trust_authority)
    place = Place(model, Started(parties or 2, check_device(device or "cpu")), settings, name)
    with partner(place, request, messages(system, SHORTEST), True) as found:
        if not _talk(found, system):
            raise typer.Exit(RANGE_EXIT)


def _talk(partner: Partner, system: str | None) -> bool:
    """Answer message by message until standard input ends. Return whether all values stayed in their ranges."""
    from mpc.errors import ConfigurationError
    from parties.errors import RangeExceeded

    before, right = messages(system, "")[:-1], True
    for text in _lines():
        asked = [*before, {"role": "user", "content": text}]
        try:
            given = partner.answer(asked)
            given.result.check_range(given.text)
        except RangeExceeded as error:
            show_error(error)
            right = False
        except ConfigurationError as error:
            show_error(error)
        else:
            before = [*asked, {"role": "assistant", "content": given.text}]
    return right


def _lines() -> Iterator[str]:
    """Yield the messages, with a prompt for a person. Raises `ConfigurationError` for a line that is no UTF-8."""
    interactive, number = sys.stdin.isatty(), 0
    while True:
        if interactive:
            err.print("you> ", end="")
        if not (data := sys.stdin.buffer.readline()):
            return
        number += 1
        if text := decode_text(data, f"line {number} of standard input").rstrip("\n"):
            yield text
