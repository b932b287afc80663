"""`mpcache ray`: what runs as actors of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.commands.deal import deal_json, show_deal
from launch.cli.options import JsonOption, agreed_choice
from launch.local.checks import check_suite
from launch.local.signals import Terminated
from launch.terminal.console import err, print_json
from launch.terminal.helping import Commands

if TYPE_CHECKING:
    from types import ModuleType

    from launch.cluster.dealers import Worker
    from launch.cluster.replicas import Replica
    from launch.cluster.settings import DealerSettings, ReplicaSettings
    from parties.tapes.deal import DealOrder

app = Commands(help="Dealers and replicas on a Ray cluster: pip install 'mpcache[ray]'.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Dealers and replicas on a Ray cluster: pip install 'mpcache[ray]'."""


@app.command("up")
def up(
    config: Annotated[Path, typer.Option("--config", help="The cluster file (YAML); see docs/clusters.md.")],
    as_json: JsonOption = False,
) -> None:
    """Run what a cluster file says as actors of a Ray cluster: dealers, replicas of a deployment, or one after the other.

    Dealers write tapes for later sessions, as `mpcache deal` does with one. The cluster is the dealer's own: its nodes see
    the dealer's key and the seeds that they deal, in a folder that all have; only names and public settings go through Ray.
    A dealer that ends is replaced, and its tape dealt again under new seeds. Until all tapes are there, nothing is.

    Replicas are whole deployments of this machine behind one address, for one operator, who has all shares; one that fails
    is replaced. They serve until Ctrl-C, which leaves nothing behind.
    """
    from launch.cluster.connection import connected, import_ray
    from launch.cluster.settings import load_cluster

    settings = load_cluster(config)
    import_ray()
    order = order_of(settings.dealers) if settings.dealers is not None else None
    if order is not None and settings.dealers is not None:
        order.check(settings.dealers.out)
    with connected(settings.address, settings.cpus) as ray:
        if order is not None and settings.dealers is not None:
            _deal(ray, order, settings.dealers, as_json)
        if settings.replicas is not None:
            _serve(ray, settings.replicas)


def _deal(ray: ModuleType, order: DealOrder, dealers: DealerSettings, as_json: bool) -> None:
    from launch.cluster.dealers import RayDealers
    from parties.tapes.deal import deal

    def event(what: str, worker: Worker) -> None:
        if what == "lost":
            work = f"tape {worker.task} is dealt again under new seeds" if worker.task else "it had no tape yet"
            err.print(f"{worker.name} on {worker.node or 'a node'} is lost: {work}", soft_wrap=True)

    with err.status("dealing") as status:

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"dealing: {stage} {done} of {total}")

        dealt = deal(order, dealers.out, progress, RayDealers(ray, dealers, event))
    if as_json:
        print_json(deal_json(dealt))
    else:
        show_deal(dealt)


def _serve(ray: ModuleType, settings: ReplicaSettings) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from launch.cluster.replicas import RayReplicas
    from launch.cluster.router import Router
    from launch.serve.gateway.serving import listen
    from launch.serve.gateway.settings import read_keys

    def event(what: str, replica: Replica) -> None:
        after = f"serves on {replica.node}" if what == "ready" else "is lost: another one takes its place"
        err.print(f"{replica.name} {after}", soft_wrap=True)

    read_keys(settings.keys)
    listener, address = listen(settings.listen, "listen")
    router = Router(listener)
    replicas = RayReplicas(ray, settings, router, event)
    try:
        router.start()
        err.print(f"OpenAI's API at http://{address}/v1, model: {settings.name}; Ctrl-C ends it")
        while True:
            replicas.watch()
    except Terminated:
        pass
    finally:
        replicas.stop()
        router.stop()


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
    known = DealSpec(*lengths, suite, chosen, agreed, dealers.policy, padded=dealers.padded, behind=dealers.prefix)
    return DealOrder(role, architecture, known)
