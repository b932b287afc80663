"""`mpcache estimate`: what a generation or an encoding would cost, for any model, suite and network, without running it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.commands.bench import LayersOption
from launch.cli.estimate_tables import show_memory, show_notes, show_seconds, warn_before, weights_text
from launch.cli.options import (
    DEFAULT_SUITE,
    SHAPE_HELP,
    DecodingOption,
    DraftOption,
    JsonOption,
    KeptOption,
    PartiesOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    TemperatureOption,
    agreed_choice,
    chosen_draft,
    options_for,
    shape_name,
    suite_options,
)
from launch.local.checks import check_suite
from launch.terminal.console import byte_count, digits, err, out, print_json

if TYPE_CHECKING:
    from launch.predict.critical_path import CriticalPath
    from launch.predict.in_step import InStepSeconds
    from launch.predict.networks import Network
    from launch.predict.seconds import Machines
    from models.architectures import AnyArchitecture
    from models.costs.estimation import Estimate
    from models.costs.rates import Rates
    from models.costs.tracing import Costs, Setting
    from models.drafting import DraftPlan

MASK_BYTES = 12  # that tracing a prompt holds for each entry of its masks [T, T], at most; measured
TRACED = 600_000_000  # bytes beside them
TRACE_SECONDS, MASK_SECONDS = 30.0, 1.9e-8  # that an estimate may take; for each entry of masks [T, T], measured

ShapeOrFolderOption = Annotated[
    str,
    typer.Option(
        "--model",
        help=SHAPE_HELP,
        callback=shape_name,
    ),
]
PromptTokensOption = Annotated[
    int, typer.Option("--prompt", min=1, help="Tokens of the prompt, or of an encoder's text with its padding.")
]
TextsOption = Annotated[
    int, typer.Option("--texts", min=1, help="Texts of an encoder's session, each of --prompt tokens with its padding.")
]
NewTokensOption = Annotated[int, typer.Option("--new", min=1, help="Tokens to generate.")]
NetworkOption = Annotated[
    str, typer.Option("--network", help="lan, wan, mobile, localhost, or round trip in ms and Mbit/s: 10,1000.")
]
PrefixTokensOption = Annotated[
    int,
    typer.Option("--prefix", min=0, help="Tokens of a registered prefix that the prompt begins behind, beside --prompt."),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--rate",
        help="Ring multiply-adds a second of a party, in 10^9: products of few rows, of many. Measured by default.",
    ),
]
AllLayersOption = Annotated[
    bool, typer.Option("--all-layers", help="Trace every layer, head and token: the same counts, slowly.")
]
PaddedOption = Annotated[bool, typer.Option("--padded", help="--prompt is a bucket that a shorter prompt is padded to.")]
SessionsOption = Annotated[
    int,
    typer.Option("--sessions", min=1, help="Sessions of these lengths that run in step: rounds shared, bytes, seconds."),
]
CriticalPathOption = Annotated[
    bool, typer.Option("--critical-path", help="List the rounds of one layer: which openings share each, in order.")
]


def run(
    model: ShapeOrFolderOption,
    prompt: PromptTokensOption,
    new: NewTokensOption = 1,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: PartiesOption = 2,
    network: NetworkOption = "lan",
    rate: RateOption = None,
    layers: LayersOption = None,
    decoding: DecodingOption = None,
    temperature: TemperatureOption = None,
    draft: DraftOption = "off",
    kept: KeptOption = 1,
    prefix: PrefixTokensOption = 0,
    suite_option: SuiteOptionsOption = None,
    all_layers: AllLayersOption = False,
    critical_path: CriticalPathOption = False,
    sessions: SessionsOption = 1,
    texts: TextsOption = 1,
    padded: PaddedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict rounds, bytes, work, memory and seconds of each stage.

    The session's own program runs on tensors without content; what it counts is what parties count on the wire. Seconds are
    those of the slower side, parties or dealer (with prefer=online the parties'): computing at this machine's rates, delays,
    bytes; with --network localhost all roles share this machine's processors. A machine that is not quiet is named.
    """
    from launch.predict.in_step import in_step_stages
    from launch.predict.networks import find_network
    from models.costs.estimation import estimate
    from models.costs.tracing import Setting
    from models.policies import parse
    from models.shapes import find_description, tied, with_layers, with_positions

    check_suite(suite)
    parse(policy)
    profile, given = find_network(network), None if rate is None else _rates(rate)
    own = find_description(model) if layers is None else with_layers(find_description(model), layers)
    architecture = with_positions(own, prefix + prompt + new - 1)
    choice = agreed_choice(decoding, temperature, architecture)
    options = options_for(model, suite, suite_option) if layers is None else suite_options(suite_option)
    most = None if all_layers else TRACE_SECONDS
    drafting = _drafting(draft, kept)
    setting = Setting(suite, parties, policy, options, *choice, drafting, prefix, None, _texts(texts, prompt), most, padded)
    check_traced(prefix + prompt)
    warn_before(model, suite, own, prefix + prompt, new)
    with err.status(f"{model}: tracing"):
        found = estimate(architecture, setting, prompt * texts, new, exhaustive=all_layers, kept=kept)
        machines, disturbed = _machines(profile, given, setting)
        path = _critical_path(architecture, setting, prompt, new) if critical_path else None
    stages = in_step_stages(found, sessions, profile, machines.rates) if sessions > 1 else {}
    if as_json:
        about = {"measured": given is None, "disturbed": disturbed}
        return print_json(estimate_json(found, model, machines, about) | _in_step_json(stages) | _path_json(path))
    _show(found, machines, tied(model))
    _show_in_step(stages)
    _show_path(path, new > 1)
    show_notes(disturbed)


def _machines(network: Network, given: Rates | None, setting: Setting) -> tuple[Machines, str]:
    """Return machines with the rates that are given, else with measured ones, and what disturbed the measuring."""
    from launch.local.quiet import disturbance
    from launch.predict.seconds import Machines
    from models.costs.rates import measure_rates

    disturbed = disturbance() if given is None else ""
    return Machines.of(network, given or measure_rates(), setting), disturbed


def _path_json(path: CriticalPath | None) -> dict[str, Any]:
    if path is None:
        return {}
    return {"critical_path": {"layer": path.layer, "rounds": [asdict(r) for r in path.rounds]}}


def _texts(count: int, prompt: int) -> tuple[int, ...]:
    """Return the padded lengths of an encoder's texts, none where there is but one."""
    return (prompt,) * count if count > 1 else ()


def check_traced(tokens: int) -> None:
    """Raise `ConfigurationError` for a prompt whose public masks, [tokens, tokens], this machine's memory does not hold, or
    take too long."""
    from launch.local.memory import available_memory
    from mpc.errors import ConfigurationError

    free = available_memory()
    if free is not None and TRACED + MASK_BYTES * tokens**2 > free:
        most = math.isqrt(max(0, free - TRACED) // MASK_BYTES)
        raise ConfigurationError(
            f"--prompt: tracing {tokens} tokens takes about {byte_count(TRACED + MASK_BYTES * tokens**2)} of memory, "
            f"{byte_count(free)} are free here; ask for at most {most} tokens"
        )
    if MASK_SECONDS * tokens**2 > TRACE_SECONDS:
        most = math.isqrt(int(TRACE_SECONDS / MASK_SECONDS))
        raise ConfigurationError(
            f"--prompt: {tokens} tokens take some {MASK_SECONDS * tokens**2:,.0f} s; ask for at most {most}: beyond "
            "a few thousand tokens, costs of a prompt grow with the square of its length, of a token in proportion to it"
        )


def _drafting(draft: str, kept: int) -> DraftPlan | None:
    """Return what is public of --draft. Raises `ConfigurationError` where its steps have no `kept` rows."""
    from mpc.errors import ConfigurationError

    found = chosen_draft(draft)
    rows = 1 if found is None else found.plan.tokens + 1
    if kept > rows:
        raise ConfigurationError(f"--kept {kept}: a step of --draft {draft} has {rows} rows; at most so many can stay")
    return None if found is None else found.plan


def _last(architecture: AnyArchitecture, behind: int, prompt: int, new: int) -> tuple[int, int, int]:
    """Return what is cached before the last of several new tokens, that it is one, and what an encoder has read."""
    from models.architectures import decoder_of

    a = decoder_of(architecture, "a new token")
    return behind + a.cached(prompt) + new - 2, 1, 0 if a.encoder is None else prompt


def _critical_path(architecture: AnyArchitecture, setting: Setting, prompt: int, new: int) -> CriticalPath:
    """Return that of the last token, or of the prompt where only one token is asked for."""
    from launch.predict.critical_path import critical_path

    return (
        critical_path(architecture, setting, *_last(architecture, setting.behind, prompt, new))
        if new > 1
        else critical_path(architecture, setting, 0, prompt)
    )


def _in_step_json(stages: dict[str, InStepSeconds]) -> dict[str, Any]:
    return {"in_step": {name: stage.to_json() for name, stage in stages.items()}} if stages else {}


def _show_in_step(stages: dict[str, InStepSeconds]) -> None:
    titles = {"prefill": "the prompts", "token": "a further token of each"}
    for name, stage in stages.items():
        c = stage.costs
        out.print(
            f"{c.sessions} sessions in step, {titles[name]}: {c.rounds:.0f} rounds in place of "
            f"{c.sessions * c.rounds:.0f} in turn, {byte_count(c.bytes_sent)} and {byte_count(c.overhead_bytes)} of lists "
            f"sent by a party, {digits(stage.seconds)} s in place of {digits(stage.seconds_in_turn)}."
        )


def _show_path(path: CriticalPath | None, decoded: bool) -> None:
    from rich.table import Table

    if path is None:
        return
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for column in ("round", "bytes"):
        table.add_column(column, justify="right")
    table.add_column("what shares it")
    for r in path.rounds:
        shares = ", ".join(f"{s.part} {s.operation} {byte_count(s.bytes_sent)}" for s in r.shares)
        table.add_row(str(r.number), byte_count(r.bytes_sent), shares)
    out.print(f"Rounds of one layer of {'the last token' if decoded else 'the prompt'}, in order:", style="bold")
    out.print(table)


def _rates(text: str) -> Rates:
    from models.costs.rates import Rates
    from mpc.errors import ConfigurationError

    try:
        numbers = [float(part) * 1e9 for part in text.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or not all(0 < n < float("inf") for n in numbers):
        raise ConfigurationError(f"--rate '{text}': one or two positive numbers are needed, such as 1.5 or 0.8,4")
    return Rates(numbers[0], numbers[-1])


def stage_json(costs: Costs, machines: Machines, part: str | None = None, sessions: int = 0) -> dict[str, Any]:
    """Return one stage, or one part of it, as plain numbers. sessions: that begin with it."""
    from models.costs.tracing import StageCosts

    taken = machines.seconds(costs, part, sessions)
    return {
        **asdict(StageCosts.of(costs, part)),
        "latency_seconds": taken.latency,
        "transfer_seconds": taken.transfer,
        "compute_seconds": taken.party,
        "dealer_seconds": taken.dealer,
        "offline_seconds": taken.dealt,
        "seconds": taken.total,
    }


def estimate_json(found: Estimate, model: str, machines: Machines, about_rates: Mapping[str, object]) -> dict[str, Any]:
    """Return everything, for programs. "tokens" is all tokens after the first together."""
    from models.shapes import tied

    network, rates, a = machines.network, machines.rates, found.architecture
    setting = found.setting
    stages = {
        "model load": found.load,
        "prefix load": found.load_prefix,
        "prefill": found.first,
        "tokens": found.further,
        "session": found.total,
    }

    def whole(name: str, costs: Costs) -> dict[str, Any]:
        parts = {part: stage_json(costs, machines, part) for part in costs.parts()}
        return {**stage_json(costs, machines, None, int(name in ("prefill", "session"))), "parts": parts}

    return {
        "model": model,
        "layers": found.architecture.layers,
        "parameters": a.parameters() - tied(model) * a.vocabulary * a.width,
        "party_weights": found.architecture.parameters(),
        "prefix": found.setting.behind,
        "prompt": found.prompt,
        "new": found.new,
        "suite": setting.suite,
        "policy": setting.policy,
        "decoding": setting.decoding,
        "temperature": setting.temperature,
        "draft": 0 if setting.draft is None else setting.draft.tokens,
        "kept": found.kept,
        "steps": found.steps,
        "options": dict(setting.options),
        "parties": setting.parties,
        "network": {"name": network.name, "round_trip_seconds": network.round_trip, "bits_per_second": network.bandwidth},
        "rates": {**{name: rate for name, rate in asdict(rates).items() if name != "spread"}, **about_rates},
        "seconds_formula": machines.formula,
        "start_seconds": machines.start_seconds(),
        "stages": {name: whole(name, costs) for name, costs in stages.items()},
        "prefill_layer": stage_json(found.first_layer, machines),
        "last_token_layer": stage_json(found.last_layer, machines),
        "further_tokens": found.new - 1,
        "memory_bytes": found.memory_bytes,
        "memory": found.memory.to_json(),
        "cache_bytes": {"most": found.cached.most, "last": found.cached.last},
        "lengths_traced": found.lengths_traced,
        "trace_seconds": found.seconds,
    }


def _show(found: Estimate, machines: Machines, tied: bool) -> None:
    from rich.table import Table

    from protocols.expert_ways import DENSE

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("")
    for column in ("rounds", "sent by\na party", "offline", "multiply-\nadds, 10^9", f"seconds\n({machines.network.name})"):
        table.add_column(column, justify="right")

    def add(title: str, costs: Costs, part: str | None = None, count: int = 1, style: str = "") -> None:
        j = stage_json(costs, machines, part, int(not part and costs in (found.first, found.total)))
        numbers = [
            f"{j['rounds'] / count:,.0f}",
            byte_count(j["bytes_sent"] / count),
            byte_count(j["offline_bytes"] / count),
        ]
        numbers += [digits(j["multiply_adds"] / count / 1e9), digits(j["seconds"] / count)]
        table.add_row(title, *numbers, style=style)

    stages = [("loading the model", found.load, 1), ("prompt, 1st token", found.first, 1)]
    if found.setting.behind:
        stages.insert(1, ("loading the prefix, once", found.load_prefix, 1))
    if found.new > 1:
        stages.append(("a further token", found.further, found.new - 1))
    if found.setting.draft is not None and found.steps:
        stages.append(("a step of its rows", found.further, found.steps))
    for title, costs, count in stages:
        add(title, costs, None, count, "bold")
        parts = costs.parts()
        for part in parts if len(parts) > 1 else []:
            add(f"  {part}", costs, part, count)
    add("one layer of the prompt", found.first_layer)
    if found.new > 1:
        add("one layer of the last token", found.last_layer)
    add("session, without loading", found.total, style="bold")
    out.print(table)
    a = found.architecture
    out.print(
        f"{a.layers} layers, {weights_text(a, tied)}, {found.setting.parties} parties, suite {found.setting.suite}, "
        f"policy {found.setting.policy}. Memory of a party: {byte_count(found.memory_bytes)}, of which the "
        f"session's cache takes {byte_count(found.cached.most)} at most, {byte_count(found.cached.last)} at the end."
    )
    if a.experts is not None:
        way = found.setting.options.get("experts", DENSE)
        out.print(
            f"Experts: {a.experts.chosen} of {a.experts.count}, {way} for the prompt, dense for a token (--suite-option "
            "experts=...)."
        )
    show_seconds(machines)
    if found.setting.draft is not None:
        out.print(
            f"Draft: {found.steps} steps after the first token, of at most {found.setting.draft.tokens + 1} rows, of which "
            f"{found.kept} stay (--kept). What is dealt for a step is dealt once it is known how many rows of the last stay."
        )
    show_memory(found)
    out.print(f"{found.lengths_traced} lengths traced in {found.seconds:.1f} s.")
