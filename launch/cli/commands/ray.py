"""`mpcache ray`: what runs as actors of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.commands.deal import deal_json, show_deal
from launch.cli.options import JsonOption, agreed_choice
from launch.local.checks import check_suite
from launch.terminal.console import err, print_json

if TYPE_CHECKING:
    from launch.cluster.dealers import Worker
    from launch.cluster.settings import DealerSettings
    from parties.tapes.deal import DealOrder

app = typer.Typer(help="Dealers on a Ray cluster: pip install 'mpcache[ray]'.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Dealers on a Ray cluster: pip install 'mpcache[ray]'."""


@app.command("up")
def up(
    config: Annotated[Path, typer.Option("--config", help="The cluster file (YAML); see docs/clusters.md.")],
    as_json: JsonOption = False,
) -> None:
    """Deal tapes for later sessions with many dealers at a time, as `mpcache deal` does with one.

    The cluster is the dealer's own: its nodes see the dealer's key and the seeds that they deal, in a folder that all have;
    only names and public settings go through Ray. A dealer that ends is replaced, and its tape dealt again under new seeds.
    Until all tapes are there, nothing is; Ctrl-C leaves nothing behind.
    """
    from launch.cluster.connection import connected, import_ray
    from launch.cluster.dealers import RayDealers
    from launch.cluster.settings import load_cluster
    from parties.tapes.deal import deal

    settings = load_cluster(config)
    dealers = settings.dealers
    import_ray()
    order = order_of(dealers)
    order.check(dealers.out)
    with err.status("connecting to Ray") as status:

        def event(what: str, worker: Worker) -> None:
            if what == "lost":
                work = f"tape {worker.task} is dealt again under new seeds" if worker.task else "it had no tape yet"
                err.print(f"{worker.name} on {worker.node or 'a node'} is lost: {work}", soft_wrap=True)

        with connected(settings.address, dealers.most_workers * dealers.cpus) as ray:
            dealt = deal(
                order,
                dealers.out,
                lambda stage, done, total: status.update(f"dealing: {stage} {done} of {total}"),
                RayDealers(ray, dealers, event),
            )
    if as_json:
        print_json(deal_json(dealt))
    else:
        show_deal(dealt)


def order_of(dealers: DealerSettings) -> DealOrder:
    """Return what the settings ask for. Raises `ConfigurationError`."""
    from launch.serve.roles import load_role
    from models.calibration.record import read_record
    from models.checkpoint import read_description
    from parties.tapes.deal import DealOrder, DealSpec
    from protocols.registry import SuiteSpec

    check_suite(dealers.suite)
    role, architecture = load_role(dealers.config, "dealer"), read_description(dealers.model)
    record = read_record(dealers.model)
    chosen, agreed = agreed_choice(dealers.decoding, dealers.temperature, architecture)
    bounds = {} if record is None else record.suites.get(dealers.suite, {})
    suite = SuiteSpec(dealers.suite, options=dealers.suite_options).over(bounds)
    lengths = (dealers.prompts, dealers.tokens, dealers.sessions)
    return DealOrder(role, architecture, DealSpec(*lengths, suite, chosen, agreed, dealers.policy))
