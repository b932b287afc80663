"""`mpcache bench`: what one step of a decoder costs, measured in real processes over gRPC with TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    SHAPE_HELP,
    DeviceOption,
    JsonOption,
    PartiesOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    shape_name,
    suite_options,
)
from launch.local import supervision
from launch.local.checks import check_device, check_suite
from launch.terminal.console import byte_count, err, out, print_json
from launch.terminal.outputs import make_writable_folder

if TYPE_CHECKING:
    from launch.measure.bench.evicted import EvictionResult
    from launch.measure.bench.plan import BenchPlan
    from launch.measure.bench.run import BenchResult
    from models.architecture import Architecture
    from models.cache import CachePolicy

ShapeOption = Annotated[str, typer.Option("--model", "--shape", help=SHAPE_HELP, callback=shape_name)]
LayersOption = Annotated[int | None, typer.Option("--layers", min=1, help="Only the first layers of the shape.")]

CachedOption = Annotated[int | None, typer.Option("--cached", min=1, help="Decode one token after this many.")]
PrefillOption = Annotated[int | None, typer.Option("--prefill", min=1, help="Process a prompt of this many tokens.")]
EvictionOption = Annotated[
    bool,
    typer.Option("--eviction", help="With --cached N: what an evicting policy does once, after a prompt of N tokens."),
]
RepeatOption = Annotated[int, typer.Option("--repeat", min=1, help="Measured repetitions, after one that is not.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of each process.")]
PreprocessingOption = Annotated[
    bool, typer.Option(help="Prepare what depends on the tape alone before a step is timed, where the suite can.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of weights, cached tokens and their shares.")]
MatrixOption = Annotated[
    Path | None, typer.Option("--config", help="Measure a matrix of settings from this YAML file; see docs/bench.md.")
]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the matrix, such as prompts=[128,1024]; may be repeated."),
]
ResultsOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for the matrix' results; what is there is not measured again.")
]


def run(
    shape: ShapeOption = "gpt2",
    layers: LayersOption = None,
    cached: CachedOption = None,
    prefill: PrefillOption = None,
    eviction: EvictionOption = False,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: PartiesOption = 2,
    repeat: RepeatOption = 5,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    suite_option: SuiteOptionsOption = None,
    preprocessing: PreprocessingOption = True,
    seed: SeedOption = 1,
    matrix: MatrixOption = None,
    changes: ChangesOption = None,
    results: ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one decode step, one prefill, one eviction, or a matrix of settings, on random weights; the first three end
    with one line of JSON.

    Parties and dealer are processes of their own. `seconds_median` is what needs an input. Before a step is timed, the
    dealer has dealt its tape (`dealer_seconds`), each party has fetched it and has prepared what depends on it alone
    (`prepare_seconds`; with --no-preprocessing that happens within the step).
    Bytes are counted where they enter the wire: what one party sends to the others in one step. Weights, cached tokens and
    their shares follow from a public seed: nothing that a benchmark computes on is secret.

    --eviction runs what the policy does after the prompt on one layer's cache, stage by stage; all layers cost the same.
    """
    from launch.measure.bench.plan import BenchPlan
    from mpc.errors import ConfigurationError

    if matrix is not None or changes:
        _run_matrix(matrix, changes or [], results, as_json)
        return
    if results is not None:
        raise ConfigurationError("--out keeps the results of a matrix: give --config FILE, or --set KEY=VALUE")
    _check_step(cached, prefill, eviction, policy)
    architecture = _architecture(shape, layers, cached, prefill, policy)
    plan = BenchPlan(
        architecture=architecture.to_json(),
        suite=check_suite(suite),
        policy=policy,
        options=suite_options(suite_option),
        parties=parties,
        cached=cached or 0,
        prefill=prefill or 0,
        eviction=eviction,
        repeat=repeat,
        threads=threads,
        preprocessing=preprocessing,
        device=check_device(device),
        seed=seed,
    )
    _measure(plan, shape, as_json)


def _check_step(cached: int | None, prefill: int | None, eviction: bool, policy: str) -> None:
    """Raise `ConfigurationError` for options that do not go together."""
    from models.policies import parse
    from models.policies.eviction import EvictingPolicy
    from models.policies.holding import Holding
    from mpc.errors import ConfigurationError

    if (cached is None) == (prefill is None):
        raise ConfigurationError("give either --cached N (one decode step) or --prefill N (one prompt)")
    parsed = parse(policy)
    if eviction and (not isinstance(parsed, EvictingPolicy | Holding) or _learns(parsed)):
        raise ConfigurationError(
            "--eviction measures what a policy does once after a prompt, without weights that it has learned, and "
            f"'{policy}' is none of these: set --policy mpcache, or another one that drops or holds rows, such as snapkv"
        )
    if eviction and cached is None:
        raise ConfigurationError("--eviction needs --cached N, the tokens of the prompt, instead of --prefill")


def _learns(policy: CachePolicy) -> bool:
    from models.shapes import SHAPES

    return bool(policy.weight_shapes(SHAPES["tiny"]))


def _architecture(shape: str, layers: int | None, cached: int | None, prefill: int | None, policy: str) -> Architecture:
    """Return the shape with its first layers and enough positions. Raises `ConfigurationError`, also for the policy."""
    from models.learned import with_learned
    from models.policies import parse
    from models.shapes import find_shape, with_layers, with_positions

    parsed = parse(policy)  # before a model is looked for
    architecture = find_shape(shape)
    architecture = architecture if layers is None else with_layers(architecture, layers)
    architecture = with_positions(architecture, (cached or 0) + (prefill or 1))
    architecture = with_learned(architecture, parsed.weight_shapes(architecture))
    if cached or prefill:
        parsed.check(architecture, cached or prefill or 0)
    return architecture


def _measure(plan: BenchPlan, shape: str, as_json: bool) -> None:
    """Run the plan's processes and show what they measured."""
    from launch.measure.bench.evicted import run_eviction
    from launch.measure.bench.run import run_bench
    from mpc.tape import CountingTape

    plan.make_suite(CountingTape(), None)  # options are checked before processes start
    if plan.eviction:
        with err.status(f"{shape}, one layer's eviction, suite {plan.suite}, {plan.parties} parties"):
            evicted = run_eviction(plan)
        if not as_json:
            _show_eviction(evicted)
        print_json(evicted.to_json(shape))
        return
    with err.status(f"{shape}, {plan.shape.layers} layers, suite {plan.suite}, {plan.parties} parties"):
        result = run_bench(plan)
    if not as_json:
        _show(result)
    print_json(result.to_json(shape))


def _run_matrix(file: Path | None, changes: list[str], folder: Path | None, as_json: bool) -> None:
    from launch.measure.bench.cell import Matrix, changed, read_matrix
    from launch.measure.bench.results import ResultFolder
    from launch.measure.matrix import run_matrix
    from mpc.errors import ConfigurationError

    if folder is None:
        raise ConfigurationError("a matrix needs --out FOLDER for its results")
    chosen = changed(Matrix() if file is None else read_matrix(file), changes)
    make_writable_folder(folder)
    outcome = run_matrix(chosen.all_cells(), ResultFolder(folder), lambda line: err.print(line, markup=False))
    record = {
        "measured": [str(path) for path in outcome.measured],
        "skipped": [str(path) for path in outcome.skipped],
        "failed": [{"cell": cell.name, "error": error} for cell, error in outcome.failed],
    }
    if as_json:
        print_json(record)
    else:
        counts = f"{len(outcome.measured)} measured, {len(outcome.skipped)} there already, {len(outcome.failed)} failed"
        out.print(f"{counts}; results are in {folder} (`mpcache report --results {folder} --out FOLDER`)", soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(1)


def process(
    folder: Annotated[Path, typer.Option("--folder")],
    name: Annotated[str, typer.Option("--name")],
) -> None:
    """One process of a benchmark; started by `mpcache bench`."""
    supervision.end_with_parent()
    from launch.measure.bench.plan import DEALER, BenchPlan
    from launch.measure.bench.worker import run_dealer, run_party
    from mpc import role_process

    role_process.set_up(computes=True)
    if name == DEALER:
        run_dealer(folder)
    else:
        run_party(folder, BenchPlan.read(folder).names.index(name))


def _show(result: BenchResult) -> None:
    from rich.table import Table

    plan = result.plan
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for column in ("rounds", "sent by a party", "offline"):
        table.add_column(column, justify="right")
    parts = [
        ("embedding", "embedding"),
        (f"layer {result.layer}: attention", f"layer {result.layer}/attention"),
        (f"layer {result.layer}: feed-forward", f"layer {result.layer}/mlp"),
        ("output logits", "head"),
        ("token choice", "choice"),
        (f"whole step, {plan.shape.layers} layers", ""),
    ]
    for title, part in parts:
        cost = result.step_cost(part)
        table.add_row(title, str(cost.rounds), byte_count(cost.bytes_sent), byte_count(cost.offline_bytes))
    out.print(table)
    each = ", ".join(f"{s:.2f}" for s in result.seconds)
    dealer = ", ".join(f"{s:.2f}" for s in result.dealer_seconds)
    out.print(f"online seconds, slowest party: {each}; dealer's seconds: {dealer}")
    if any(result.prepare_seconds):
        prepared = ", ".join(f"{s:.2f}" for s in result.prepare_seconds)
        out.print(f"a party's seconds of preprocessing, needing no input, before each step: {prepared}")
    out.print(
        f"a party's memory {byte_count(result.peak_rss_bytes)}, the dealer's {byte_count(result.dealer_peak_rss_bytes)}; "
        f"logits within {result.max_logit_error:.4f} of float32"
    )


def _show_eviction(result: EvictionResult) -> None:
    from rich.table import Table

    plan = result.plan
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("")
    for column in ("rounds", "sent by\na party", "\noffline", "\nseconds", "preprocessing,\nseconds", "dealer,\nseconds"):
        table.add_column(column, justify="right")
    for s in result.stages:
        sizes = [byte_count(s.bytes_sent), byte_count(s.offline_bytes)]
        seconds = [f"{x:.2f}" for x in (s.seconds, s.prepare_seconds, s.dealer_seconds)]
        table.add_row(s.name, str(s.rounds), *sizes, *seconds)
    out.print(table)
    out.print(
        f"One layer of {plan.shape.layers}, which all cost the same: {result.kept} of {plan.cached} tokens stay. Importance "
        "is the whole attention of the prompt's last queries; all layers but the last compute that for the prompt anyway."
    )
    said = f"A token's attention to what is left differs from float arithmetic's by {result.max_error:.1e}."
    if result.same_as_plaintext is not None:
        said = (
            f"{result.same_as_plaintext} of the {result.kept} tokens stay in float arithmetic too; rows moved within "
            f"{result.max_error:.1e}."
        )
    out.print(
        f"{said} A party's memory {byte_count(result.peak_rss_bytes)}, the dealer's "
        f"{byte_count(result.dealer_peak_rss_bytes)}."
    )
