"""`mpcache prefix`: texts whose keys and values are computed once, for sessions of all clients to begin behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from launch.cli.options import (
    DEFAULT_SUITE,
    ConfigOption,
    JsonOption,
    SuiteOption,
    SuiteOptionsOption,
    TrustAuthorityOption,
    suite_options,
    tokenizer_option,
)
from launch.local.checks import check_suite
from launch.terminal.console import err, out, print_json
from launch.terminal.helping import Commands
from launch.terminal.texts import read_text_file
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from parties.client.model_reference import ModelReference
    from parties.wire.held_prefix import RegisteredPrefix

app = Commands(help="Registered prefixes: texts that are computed once, for sessions to begin behind.")

ModelNameOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The shared model's name or id; by default the only one.")
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The prefix's name or id; NAME.* for all chunks of a text that was split.")
]


@app.command("add")
def add(
    config: ConfigOption,
    tokenizer: Annotated[Path, tokenizer_option()],
    name: Annotated[str, typer.Option("--name", help="What clients call it.")],
    text: Annotated[
        str | None, typer.Option("--text", help="The text. Other users of this machine may see it; --file keeps it private.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="File with the text, all of it.")] = None,
    model: ModelNameOption = None,
    secret: Annotated[
        bool,
        typer.Option(
            "--secret", help="Share the text among the parties as a prompt, and tell it nobody; otherwise it is public."
        ),
    ] = False,
    split: Annotated[
        int | None,
        typer.Option(
            "--split",
            min=1,
            metavar="TOKENS",
            help="Register it in chunks of so many tokens, NAME.1 and so on, among which clients choose in secret.",
        ),
    ] = None,
    suite: SuiteOption = DEFAULT_SUITE,
    suite_option: SuiteOptionsOption = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Store the scores too that sessions with this policy begin with: h2o, locret.")
    ] = "full",
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """Register a prefix of a model, with the model owner's configuration; the parties compute and store its rows.

    Sessions in the same suite, with the same options, may begin behind it (`mpcache generate --prefix NAME`).
    """
    from launch.serve.roles import load_role
    from launch.terminal.progress import stages
    from models.checkpoint import load_tokenizer, read_architecture
    from parties.model_owner.prefixes import PrefixText, add_prefix
    from protocols.registry import SuiteSpec

    if (text is None) == (file is None):
        raise ConfigurationError("give the prefix once: --text TEXT, or --file FILE")
    check_suite(suite)
    settings = load_role(config, "model-owner", insecure_trust_authority)
    words = load_tokenizer(tokenizer, read_architecture(tokenizer))
    given = read_text_file(file, "--file") if file is not None else str(text)
    spec = SuiteSpec(suite, options=suite_options(suite_option))
    prefix = PrefixText(name, words.encode(given), secret, spec, words, policy)
    known = "its text is shared among the parties" if secret else "its text is public"
    for one in [prefix] if split is None else prefix.split(split):
        with stages() as bar:
            found = add_prefix(settings, model, one, bar)
        out.print(f"{found.name} is registered: {found.tokens} tokens, {known} (id {found.prefix})")


@app.command("ls")
def show(
    config: ConfigOption,
    model: ModelNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the prefixes that all parties hold, of models that this client or model owner may know of."""
    from parties.config.role_config import load_config
    from parties.model_owner.prefixes import prefixes

    settings = load_config(config).model_copy(update={"insecure_trust_authority": insecure_trust_authority})
    with err.status("asking the parties"):
        found = prefixes(settings, model)
    if as_json:
        print_json({"prefixes": [_as_json(reference, one) for reference, held in found.items() for one in held]})
        return
    table = Table(box=None, header_style="bold")
    for column in ("prefix", "id", "model", "tokens", "suite", "options", "text", "scores"):
        table.add_column(column, overflow="fold")
    for reference, held in found.items():
        for one in held:
            options = " ".join(f"{key}={value}" for key, value in one.options.items())
            known = "secret" if one.text is None else "public"
            table.add_row(
                one.name, one.prefix, reference.name, str(one.tokens), one.suite, options, known, one.scores or "-"
            )
    out.print(table if any(found.values()) else "no prefix is registered at all parties; `mpcache prefix add` registers one")


def _as_json(reference: ModelReference, one: RegisteredPrefix) -> dict[str, object]:
    return {
        "prefix": one.name,
        "id": one.prefix,
        "model": reference.name,
        "model_id": reference.id,
        "tokens": one.tokens,
        "suite": one.suite,
        "fraction_bits": one.fraction_bits,
        "options": dict(one.options),
        "public": one.text is not None,
        "scores": one.scores or None,
        "token_ids": None if one.text is None else list(one.text),
    }


@app.command("rm")
def remove(
    config: ConfigOption,
    name: NameArgument,
    model: ModelNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """Take a prefix away at all parties that hold it, with the model owner's configuration."""
    from launch.serve.roles import load_role
    from parties.model_owner.prefixes import remove_prefix

    settings = load_role(config, "model-owner", insecure_trust_authority)
    removed = remove_prefix(settings, model, name)
    out.print(f"{name} is removed ({', '.join(removed)})")


@app.command("gc")
def collect(
    config: ConfigOption,
    model: ModelNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
) -> None:
    """Take away prefixes that only some parties hold, as after a crash of one while they were stored, with the model owner's
    configuration. Not while one is being registered."""
    from launch.serve.roles import load_role
    from parties.model_owner.prefixes import remove_strays

    settings = load_role(config, "model-owner", insecure_trust_authority)
    removed = remove_strays(settings, model)
    for party, name in removed:
        out.print(f"{name} is removed at {party}")
    if not removed:
        out.print("all parties hold the same prefixes")
