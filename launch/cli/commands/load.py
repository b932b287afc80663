"""`mpcache load`: many sessions against running parties, and what they saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    ConfigOption,
    JsonOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    TrustAuthorityOption,
    suite_options,
)
from launch.local.checks import check_suite
from launch.terminal.console import byte_count, digits, err, out, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.measure.load import LoadResult

ModelNameOption = Annotated[str | None, typer.Option("--name", help="The model's name or id; by default the only one.")]
SessionsOption = Annotated[int, typer.Option("--sessions", min=1, help="Sessions in all.")]
ArrivalsOption = Annotated[
    str,
    typer.Option("--arrivals", help="together; turn: each after the one before; every:SECONDS; poisson:PER_SECOND."),
]
PromptTokensOption = Annotated[int, typer.Option("--prompt", min=1, help="Tokens of each prompt, which are random.")]
NewTokensOption = Annotated[int, typer.Option("--new", min=2, help="Tokens that each session generates.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="A new PNG file: tokens of each session over time, and how waits are spread.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of prompts and of poisson arrivals.")]


def run(
    config: ConfigOption,
    sessions: SessionsOption = 8,
    arrivals: ArrivalsOption = "together",
    prompt: PromptTokensOption = 32,
    new: NewTokensOption = 8,
    name: ModelNameOption = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    suite_option: SuiteOptionsOption = None,
    seed: SeedOption = 1,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """Run sessions and report tokens a second, seconds to the first token and between tokens, and rounds shared.

    Prompts are random tokens and answers are dropped. The first session with a model or with other suite options loads the
    weights, which its seconds show: run one session before. Exit code 1 if any session fails.
    """
    from launch.measure.load import Asked, Load, run_load
    from launch.serve.roles import load_role
    from models.policies import parse
    from parties.client.client import Client
    from protocols.registry import SuiteSpec

    check_suite(suite)
    parse(policy)
    if plot is not None and (plot.exists() or not plot.parent.is_dir() or plot.suffix.lower() != ".png"):
        raise ConfigurationError(f"--plot {plot}: give a file NAME.png that is not there yet, in a folder that is")
    load = Load(sessions, arrivals, prompt, new, seed)
    client = Client(load_role(config, "client", insecure_trust_authority))
    with err.status("asking the parties") as status:
        asked = Asked(
            client,
            client.find_model(name),
            SuiteSpec(suite, options=suite_options(suite_option)),
            policy,
            lambda done: status.update(f"{done} of {sessions} sessions are over"),
        )
        result = run_load(load, asked)
    if plot is not None:
        from launch.measure.load_plot import drawn

        plot.write_bytes(drawn(result).png)
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)
    if any(seen.error for seen in result.sessions):
        raise typer.Exit(1)


def _show(result: LoadResult) -> None:
    from rich.table import Table

    found = result.to_json()
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for column in ("seconds", "p50", "p90", "p99"):
        table.add_column(column, justify="left" if column == "seconds" else "right")
    for title, key in (("to the first token", "first_token_seconds"), ("between tokens", "seconds_per_token")):
        if found[key] is not None:
            table.add_row(title, *(digits(value) for value in found[key].values()))
    rate, decoding = digits(found["tokens_per_second"]), digits(found["decoding_tokens_per_second"])
    out.print(
        f"{found['completed']} of {result.load.sessions} sessions, {found['tokens']} tokens in {found['seconds']:.1f} s: "
        f"{rate} tokens a second, {decoding} while decoding."
    )
    out.print(table)
    out.print(
        f"{100 * found['share_of_rounds_shared']:.0f} % of the sessions' {found['rounds']} rounds were shared; a party sent "
        f"{byte_count(found['bytes_sent'])}."
    )
    for number, seen in enumerate(result.sessions):
        if seen.error is not None:
            out.print(f"session {number}: error [{seen.error}] {seen.message}", markup=False)
