"""`mpcache deal`: tapes for later sessions, written to a folder per party, so that the dealer can be offline then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from launch.cli.options import (
    DEFAULT_SUITE,
    MODEL_HELP,
    ConfigOption,
    JsonOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    agreed_choice,
    model_option,
    suite_options,
)
from launch.local.checks import check_suite
from launch.terminal.console import byte_count, err, out, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from models.chunks import ChunkPlan
    from parties.tapes.deal import Deal

ConfigurationOnlyOption = Annotated[Path, model_option(f"{MODEL_HELP} Its configuration is read, no weights.")]
PromptLengthsOption = Annotated[
    list[int], typer.Option("--prompt", min=1, help="Length of the prompt in tokens, exactly; may be repeated.")
]
DealtDecodingOption = Annotated[
    str | None,
    typer.Option(
        "--decoding",
        help="What the sessions will ask for: greedy (default), sample, logits; rows: to register a text of --prompt "
        "tokens.",
    ),
]
PrefixTokensOption = Annotated[
    int, typer.Option("--prefix", min=0, help="Tokens of the registered prefix that sessions begin behind.")
]
ChunkTokensOption = Annotated[
    str | None, typer.Option("--chunks", help="Tokens of each registered text behind it, such as 64,64,64.")
]
AgainOption = Annotated[
    int, typer.Option("--again", min=0, help="First tokens of each of them that are computed again (--repair's share).")
]
CandidatesOption = Annotated[
    int,
    typer.Option("--candidates", min=0, help="Texts that each of them is one of in secret; 0: which ones is public."),
]
TextsOption = Annotated[
    int, typer.Option("--texts", min=1, help="Texts of an encoder's session, each of --prompt tokens with its padding.")
]
PaddedOption = Annotated[
    bool,
    typer.Option("--padded", help="For clients that pad prompts to these lengths (--prompt-buckets), shorter ones too."),
]


def run(
    config: ConfigOption,
    model: ConfigurationOnlyOption,
    prompt: PromptLengthsOption,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most new tokens of a session; it may generate fewer.")],
    directory: Annotated[Path, typer.Option("--out", help="Folder to write to; new or empty.")],
    sessions: Annotated[int, typer.Option("--sessions", min=1, help="Sessions to deal for, per prompt length.")] = 1,
    suite: SuiteOption = DEFAULT_SUITE,
    decoding: DealtDecodingOption = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="The temperature of their samples, which the dealt noise is for; 1 by default."),
    ] = None,
    policy: PolicyOption = "full",
    suite_option: SuiteOptionsOption = None,
    prefix: PrefixTokensOption = 0,
    chunks: ChunkTokensOption = None,
    again: AgainOption = 0,
    candidates: CandidatesOption = 0,
    texts: TextsOption = 1,
    padded: PaddedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Deal tapes for later sessions to disk, one folder per party; the dealer need not run in those sessions.

    A tape serves one session, once: of this architecture, suite, policy, decoding and temperature, with a prompt of exactly
    --prompt tokens (with --padded, one that is padded to them) and at most --tokens new ones, within the bounds of the
    `mpcache.json` in --model (copy the owner's
    there) and of --suite-option. What a session does not use of its tape is destroyed. Each folder holds secrets of its
    party: bring it there over an encrypted connection, name it in the party's configuration as `tapes`, keep no copy.
    """
    from launch.serve.roles import load_role
    from models.calibration.record import read_record
    from models.checkpoint import read_description
    from models.prefixes import ROWS
    from parties.tapes.deal import DealOrder, DealSpec, deal
    from protocols.registry import SuiteSpec

    check_suite(suite)
    settings, architecture, record = load_role(config, "dealer"), read_description(model), read_record(model)
    chosen, agreed = (ROWS, None) if decoding == ROWS else agreed_choice(decoding, temperature, architecture)
    bounds = {} if record is None else record.suites.get(suite, {})
    spec = SuiteSpec(suite, options=suite_options(suite_option)).over(bounds)
    deals = DealSpec(prompt, tokens, sessions, spec, chosen, agreed, policy, texts=texts, padded=padded)
    deals = replace(deals, behind=prefix, chunks=chunk_plan(chunks, again, candidates))
    with err.status("dealing") as status:
        dealt = deal(
            DealOrder(settings, architecture, deals),
            directory,
            lambda stage, done, total: status.update(f"dealing: {stage} {done} of {total}"),
        )
    if as_json:
        print_json(deal_json(dealt))
    else:
        show_deal(dealt)


def chunk_plan(chunks: str | None, again: int, candidates: int) -> ChunkPlan | None:
    """Return what sessions read behind a prefix, from lengths of texts, None without any. Raises `ConfigurationError`."""
    from models.chunks import ChunkPlan

    if chunks is None:
        if again or candidates:
            raise ConfigurationError("--again and --candidates say how --chunks are read: give the lengths of these, too")
        return None
    try:
        lengths = tuple(int(part) for part in chunks.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--chunks {chunks}: lengths of texts in tokens, separated by commas, such as 64,64"
        ) from None
    return ChunkPlan(lengths, again, candidates).asked()


def deal_json(dealt: Deal) -> dict[str, Any]:
    """Return what was dealt, for programs."""
    return {
        "load": dealt.load,
        "prompts": list(dealt.prompts),
        "new_tokens": dealt.new_tokens,
        "padded": dealt.padded,
        "prefix": dealt.behind,
        "sessions": dealt.sessions,
        "parties": {name: {"folder": str(path), "bytes": dealt.sizes[name]} for name, path in dealt.folders.items()},
        "load_seconds": dealt.load_seconds,
        "session_seconds": dealt.session_seconds,
    }


def show_deal(dealt: Deal) -> None:
    """Print what was dealt, and what comes next."""
    lengths = ", ".join(str(length) for length in dealt.prompts)
    count = len(dealt.session_seconds)
    each, kind = fmean(dealt.session_seconds), "padded to" if dealt.padded else "of exactly"
    before = f" behind a prefix of {dealt.behind}" * bool(dealt.behind)
    table = Table(box=None, header_style="bold")
    for column in ("party", "folder", "size"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for name, folder in dealt.folders.items():
        table.add_row(name, str(folder), byte_count(dealt.sizes[name]))
    out.print(table)
    out.print(
        f"deal {dealt.load}: {count} session{'s' * (count != 1)}, prompt {kind} {lengths} tokens{before}, up to "
        f"{dealt.new_tokens} new ones; weights {dealt.load_seconds:.1f} s, then {each:.1f} s a session",
        soft_wrap=True,
    )
    out.print(
        "Next: move what each folder holds into that party's `tapes` folder (over an encrypted connection, e.g. `rsync -a "
        "--remove-source-files`), write `tapes: FOLDER` into its configuration and restart it.",
        soft_wrap=True,
    )
