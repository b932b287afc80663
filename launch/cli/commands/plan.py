"""`mpcache plan`: the cheapest way to do MPCache's selection, and what the others would cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.estimate_tables import warn_beyond
from launch.cli.options import (
    DEFAULT_SUITE,
    SHAPE_HELP,
    JsonOption,
    PartiesOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    options_for,
    shape_name,
)
from launch.local.checks import check_suite
from launch.terminal.console import digits, err, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.predict.networks import Network
    from launch.predict.planning import Choice, Lengths, Plan
    from launch.predict.systems import Offer
    from models.architecture import Architecture
    from models.costs.tracing import Setting


def run(
    model: Annotated[
        str,
        typer.Option("--model", help=SHAPE_HELP, callback=shape_name),
    ],
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens of the prompt.")],
    new: Annotated[int, typer.Option("--new", min=1, help="Tokens to generate.")] = 32,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "mpcache:preset=few-queries",
    parties: PartiesOption = 2,
    network: Annotated[
        str, typer.Option("--network", help="lan, wan, mobile, or round trip in ms and Mbit/s: 10,1000.")
    ] = "lan",
    suite_option: SuiteOptionsOption = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            help="File with a line of `mpcache bench --json`: a decode step with the policy, one with full, an eviction. "
            "May be repeated.",
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show all alternatives with their costs.")] = False,
    systems: Annotated[
        bool,
        typer.Option("--systems", help="Compare cache systems: what each costs, holds and finds; not with --policy."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose how MPCache selects: levels of clusters, products or gathering, by predicted bytes and rounds.

    Prints the policy to use (give it to --policy), and after how many tokens eviction has paid for itself on each network.
    Bytes and rounds of a token are exact, of what happens once within 2 % and at most; seconds are delays and transfer
    on the network. What parties compute joins them where --measured gives it, for the policy that was measured.
    """
    from launch.predict.measured import read_measurements
    from launch.predict.networks import find_network
    from launch.predict.planning import Lengths, make_plan
    from models.costs.tracing import Setting
    from models.learned import with_learned
    from models.policies import parse
    from models.shapes import find_shape, with_positions

    check_suite(suite)
    profile = find_network(network)
    warn_beyond(model, own := find_shape(model), prompt, new)
    architecture = with_positions(own, prompt + new)
    options = options_for(model, suite, suite_option)
    if systems:
        return _systems(architecture, Setting(suite, parties, "full", options), Lengths(prompt, new), profile, as_json)
    architecture = with_learned(architecture, parse(policy).weight_shapes(architecture))
    setting = Setting(suite, parties, policy, options)
    known = read_measurements(measured or [], architecture, setting, prompt)
    with err.status(f"{model}: pricing the alternatives"):
        plan = make_plan(architecture, setting, Lengths(prompt, new), profile, known)
    if as_json:
        return print_json(_record(plan))
    _show(plan, explain)


def _show(plan: Plan, explain: bool) -> None:
    if explain:
        _table(plan)
        _payback(plan)
    _verdict(plan)


def _systems(architecture: Architecture, setting: Setting, lengths: Lengths, network: Network, as_json: bool) -> None:
    from launch.predict.systems import as_good, offers

    with err.status("pricing") as status:
        found = offers(architecture, setting, lengths, on_progress=lambda policy: status.update(f"pricing {policy}"))
    if as_json:
        print_json(
            {
                "prompt": lengths.prompt,
                "new": lengths.new,
                "network": network.name,
                "systems": [_offer(one, network, lengths.new) for one in found],
                "as_good": [one.policy for one in as_good(found)],
            }
        )
        return
    _systems_table(found, network, lengths.new)
    full = next(one for one in found if one.policy == "full")
    for one in sorted(as_good(found), key=lambda one: one.in_all(network, lengths.new)):
        times = one.in_all(network, lengths.new) / full.in_all(network, lengths.new)
        out.print(
            f"{one.policy}, which finds as much: {times:.2f} times the full cache's seconds for "
            f"{lengths.new} tokens on '{network.name}' (computing not counted), "
            f"{times_less(full.token.bytes_sent, one.token.bytes_sent, 'fewer bytes')} a token, "
            f"{times_less(full.cache_bytes, one.cache_bytes, 'less memory')} for the cache."
        )


def times_less(full: float, one: float, what: str) -> str:
    """Return how many times less something is than with the full cache, or how many times more.

    >>> times_less(30, 10, "fewer bytes"), times_less(10, 15, "less memory")
    ('3.00 times fewer bytes', '1.50 times more memory')
    """
    less, noun = what.split(" ")
    few, many = max(full, 1), max(one, 1)
    return f"{few / many:.2f} times {less} {noun}" if many <= few else f"{many / few:.2f} times more {noun}"


def _offer(one: Offer, network: Network, new: int) -> dict[str, Any]:
    names = ("rounds", "bytes_sent", "offline_bytes")
    return {
        "policy": one.policy,
        "problem": one.problem or None,
        **{name: getattr(one.token, name) for name in names},
        **{f"once_{name}": getattr(one.once, name) for name in names},
        "cache_bytes": one.cache_bytes,
        "seconds": one.seconds(network),
        "seconds_in_all": one.in_all(network, new),
        "needles": None if one.found is None else dict(zip(("found", "of", "tokens"), one.found, strict=True)),
    }


def _systems_table(found: Sequence[Offer], network: Network, new: int) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("\nsystem", no_wrap=True)
    for title in (
        "\nrounds",
        "sent,\nMB",
        "dealt,\nMB",
        "cache,\nMB",
        "once:\nsent, MB",
        f"{new} tokens,\nseconds",
        "\nneedles",
    ):
        table.add_column(title, justify="right")
    for one in sorted(found, key=lambda one: (bool(one.problem), one.in_all(network, new))):
        if one.problem:
            continue
        table.add_row(
            one.policy,
            str(one.token.rounds),
            _megabytes(one.token.bytes_sent),
            _megabytes(one.token.offline_bytes),
            _megabytes(one.cache_bytes),
            _megabytes(one.once.bytes_sent),
            digits(one.in_all(network, new)),
            "" if one.found is None else "{} of {} at {:,}".format(*one.found),
        )
    out.print(table)
    for one in found:
        if one.problem:
            out.print(f"{one.policy}: {one.problem}")
    out.print(
        "First a token behind the prompt: what a party sends and is dealt, and what its cache holds; once: sent at the "
        f"prompt beyond the full cache; seconds of delays and transfer on '{network.name}', the full cache's prompt not "
        "counted. Needles: found in long texts by SmolLM2-135M-Instruct, measured in plaintext (docs/quality/real); "
        "empty: not measured."
    )


def _record(plan: Plan) -> dict[str, Any]:
    def one(choice: Choice) -> dict[str, Any]:
        after = plan.pays_after(choice)
        return {
            "policy": choice.policy,
            "what": choice.what,
            "problem": choice.problem,
            "rounds": choice.token.rounds,
            "bytes_sent": choice.token.bytes_sent,
            "offline_bytes": choice.token.offline_bytes,
            "seconds": choice.seconds(plan.network),
            "once_rounds": choice.once.rounds,
            "once_bytes_sent": choice.once.bytes_sent,
            "once_offline_bytes": choice.once.offline_bytes,
            "pays_after_tokens": _number(after),
            "pays_after_by_network": {name: _number(n) for name, n in plan.pays_by_network(choice).items()},
            "computing_seconds": choice.computing,
            "computing_once_seconds": choice.computing_once,
        }

    return {
        "prompt": plan.prompt,
        "new": plan.new,
        "network": plan.network.name,
        "best": plan.best.policy,
        "full": one(plan.full),
        "alternatives": [one(c) for c in plan.choices],
    }


def _number(tokens: float) -> float | None:
    return tokens if math.isfinite(tokens) else None


def _tokens(after: float) -> str:
    return f"{math.ceil(after):,}" if math.isfinite(after) else "never"


def _payback(plan: Plan) -> None:
    """Say after how many tokens, on every network."""
    from rich.table import Table

    usable = [c for c in plan.choices if not c.problem]
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("has paid after so\nmany tokens on", no_wrap=True)
    names = list(plan.pays_by_network(usable[0]))
    for name in names:
        table.add_column(f"\n{name}", justify="right")
    for choice in usable:
        after = plan.pays_by_network(choice)
        title = f"{choice.what}, measured" if choice.computing is not None else choice.what
        table.add_row(title, *(_tokens(after[name]) for name in names))
    out.print(table)
    with_computing = [c for c in usable if c.computing is not None]
    if with_computing:
        full = plan.full.computing or 0.0
        for c in with_computing:
            out.print(
                f"{c.what}: what parties compute is in it, {full:.2f} s a token with the full cache, {c.computing:.2f} s "
                f"with this policy, {c.computing_once:.1f} s once, as measured; messages on one machine are part of that."
            )
    else:
        out.print("What parties compute is not in it: give --measured the lines of `mpcache bench --json`.")


def _table(plan: Plan) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("clusters,\ngathering", no_wrap=True)
    token, once = (
        ("\nrounds", "sent,\nMB", "offline,\nMB", "\nseconds"),
        ("once:\nsent, MB", "once: off-\nline, MB", "pays after\ntokens"),
    )
    for title in (*token, *once):
        table.add_column(title, justify="right")
    for choice in (plan.full, *plan.choices):
        if choice.problem:
            table.add_row(choice.what, "-", "-", "-", "-", "-", "-", "cannot be used")
            continue
        after = plan.pays_after(choice)
        table.add_row(
            choice.what,
            str(choice.token.rounds),
            _megabytes(choice.token.bytes_sent),
            _megabytes(choice.token.offline_bytes),
            digits(choice.seconds(plan.network)),
            _megabytes(choice.once.bytes_sent),
            _megabytes(choice.once.offline_bytes),
            "" if choice is plan.full else _tokens(after),
            style="bold" if choice is plan.best else "",
        )
    out.print(table)
    out.print(
        "First a token after the prompt: what a party sends; offline: to the party that receives corrections; seconds of "
        f"delays and transfer on '{plan.network.name}'. Then what happens once, after the prompt, beyond the full "
        "cache's work; of a prompt in batches that drop tokens, what all of it costs more (or, negative, less)."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}" if abs(count) < 10_000_000 else f"{count / 1e6:,.1f}"


def _verdict(plan: Plan) -> None:
    best, name = plan.best, plan.network.name
    counted = "computing counted as measured" if plan.measured else "computing not counted"
    after = {choice.policy: plan.pays_by_network(choice)[name] for choice in plan.comparable}
    if best is plan.full:
        nearest, tokens = min(after.items(), key=lambda item: item[1])
        when = (
            f"has paid for itself after {_tokens(tokens)} tokens"
            if math.isfinite(tokens)
            else "is not faster at any number of tokens"
        )
        out.print(
            f"full: for {plan.new} new tokens after {plan.prompt} eviction does not pay on '{name}' ({counted}); "
            f"{nearest} {when}."
        )
        return
    sent = times_less(plan.full.token.bytes_sent, best.token.bytes_sent, "fewer bytes")
    faster = plan.full.seconds(plan.network, plan.measured) / best.seconds(plan.network, plan.measured)
    out.print(
        f"{best.policy}\n{sent} a token than the full cache, {faster:.2f} times faster on '{name}' "
        f"({counted}); paid for itself after {_tokens(after[best.policy])} tokens."
    )
