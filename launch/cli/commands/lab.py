"""`mpcache lab`: a test bed of network namespaces with the delay and bandwidth of a network, on one machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from launch.cli.options import JsonOption
from launch.terminal.console import out, print_json
from launch.terminal.helping import Commands
from launch.terminal.outputs import check_writable_file
from mpc.errors import ConfigurationError, EnvironmentProblem

if TYPE_CHECKING:
    from launch.lab.measure import Link
    from launch.predict.networks import Network

app = Commands(
    help="A test bed: each role in a network namespace, with the delay and bandwidth of a network.", no_args_is_help=True
)
NameOption = Annotated[str, typer.Option("--name", help="The lab's name.")]


@app.command("up")
def up(
    profile: Annotated[str, typer.Option("--profile", help="lan, wan, mobile, or RTT_MS,MBIT_PER_SECOND.")] = "lan",
    parties: Annotated[int, typer.Option("--parties", min=2, max=16, help="Compute parties.")] = 2,
    roles: Annotated[
        str | None, typer.Option("--roles", help="Names of all roles, with commas; instead of a deployment's.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Mbit/s, instead of the profile's.")] = None,
    rtt: Annotated[float | None, typer.Option("--rtt", help="Round trip in milliseconds, instead of the profile's.")] = None,
    loss: Annotated[float, typer.Option("--loss", help="Percent of packets that get lost.")] = 0.0,
    delay: Annotated[
        str, typer.Option("--delay", help="What delays packets: netem, relay, or auto: netem where the kernel has it.")
    ] = "auto",
    addresses: Annotated[Path | None, typer.Option("--addresses", help="Write what --json prints to this file too.")] = None,
    name: NameOption = "lab",
    as_json: JsonOption = False,
) -> None:
    """Make a lab, which stays until `mpcache lab down`. Needs root, and iproute2."""
    from launch.lab.lab import Lab, roles_for

    if delay not in ("auto", "netem", "relay"):
        raise ConfigurationError(f"--delay '{delay}' is unknown; choose one of: auto, netem, relay")
    wanted = [part.strip() for part in roles.split(",") if part.strip()] if roles is not None else roles_for(parties)
    lab = Lab(_network(profile, rate, rtt, loss), wanted, name, delay)  # type: ignore[arg-type]
    if addresses is not None:
        check_writable_file(addresses, "--addresses")
    facts = lab.up().to_json()
    if addresses is not None:
        addresses.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(facts)
        return
    _show(facts)
    out.print(f"Run something there: mpcache lab run {wanted[0]} -- COMMAND; remove it: mpcache lab down", highlight=False)


@app.command("status")
def status(
    name: NameOption = "lab",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure each role's link to the last role: round trip and bandwidth.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a lab: its network, addresses, processes, what the relay did. Exit code 1 when it is not up."""
    from launch.lab.lab import Lab, read_state
    from launch.lab.measure import measure as measured
    from launch.lab.removal import labs, namespace, processes, state_file

    _must_be_able()
    if name not in labs():
        others = ", ".join(labs())
        if as_json:
            print_json({"name": name, "up": False, "labs": labs()})
        else:
            out.print(f"lab '{name}' is not up" + (f"; there are: {others}" if others else ""))
        raise typer.Exit(1)
    facts: dict[str, Any] = {"up": True, **read_state(name).to_json(), "labs": labs()}
    facts["processes"] = {role: len(processes(namespace(name, role))) for role in facts["addresses"]}
    links: dict[str, Link] = {}
    if measure:
        lab = Lab.attach(name)
        links = {role: measured(lab, role, lab.roles[-1]) for role in lab.roles[:-1]}
        facts["measured"] = {
            role: {
                "connect_ms": link.connect * 1e3,
                "round_trip_ms": link.round_trip * 1e3,
                "mbit_per_second": link.bandwidth / 1e6,
            }
            for role, link in links.items()
        }
    counts = state_file(name, ".counts")
    facts["relay"] = json.loads(counts.read_text(encoding="utf-8")) if counts.exists() else None
    if as_json:
        print_json(facts)
        return
    _show(facts)
    for role, link in links.items():
        out.print(
            f"{role} to {lab.roles[-1]}: round trip {link.round_trip * 1e3:.2f} ms, {link.bandwidth / 1e6:.0f} Mbit/s, "
            f"connected in {link.connect * 1e3:.1f} ms"
        )
    if facts["relay"] is not None:
        relay = facts["relay"]
        out.print(
            f"relay: {relay['packets']:,} packets, {relay['overflow']} dropped because too much waited, "
            f"{relay['late_mean'] * 1e3:.3f} ms late on average, {relay['late_max'] * 1e3:.1f} at most"
        )


@app.command("run", context_settings={"ignore_unknown_options": True})
def run(
    role: Annotated[str, typer.Argument(help="In whose namespace.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.", metavar="-- COMMAND...")],
    name: NameOption = "lab",
) -> None:
    """Run a command as a role. Its exit code is the command's; roles' names are hosts' names there."""
    from launch.lab.lab import Lab

    _must_be_able()
    words = Lab.attach(name).command(role, command)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise EnvironmentProblem(f"`{words[0]}` cannot be run: {error.strerror}") from None


@app.command("down")
def down(
    name: NameOption = "lab",
    everything: Annotated[bool, typer.Option("--all", help="All labs of this machine.")] = False,
) -> None:
    """Remove a lab, and end the processes in it; also what a crash left. Nothing is wrong when there is none."""
    from launch.lab.removal import check_name, labs, remove

    check_name("--name", name)
    _must_be_able()
    for lab in labs() if everything else [name]:
        out.print(f"lab '{lab}' is removed" if remove(lab) else f"lab '{lab}' was not up")


def _must_be_able() -> None:
    from launch.lab import iproute

    if (why := iproute.problem()) is not None:
        raise EnvironmentProblem(why)


def _network(profile: str, rate: float | None, rtt: float | None, loss: float) -> Network:
    """Return the profile's network with what was given by hand. Raises `ConfigurationError`."""
    from launch.predict.networks import Network, find_network

    base = find_network(profile)
    if rate is None and rtt is None and not loss:
        return base
    round_trip = base.round_trip if rtt is None else rtt / 1e3
    bandwidth = base.bandwidth if rate is None else rate * 1e6
    return Network(f"{round_trip * 1e3:g},{bandwidth / 1e6:g}", round_trip, bandwidth, loss / 100)


def _show(facts: dict[str, Any]) -> None:
    loss = f", {facts['loss_percent']:g} % lost" if facts["loss_percent"] else ""
    out.print(
        f"lab '{facts['name']}' ({facts['profile']}): {facts['mbit_per_second']:g} Mbit/s, round trip "
        f"{facts['round_trip_ms']:g} ms{loss}; delayed by: {facts['delay']}",
        highlight=False,
    )
    table = Table(box=None, header_style="bold")
    columns = ["role", "address", "namespace", *(["processes"] if "processes" in facts else [])]
    for column in columns:
        table.add_column(column, overflow="fold")
    for role, address in facts["addresses"].items():
        counted = [str(facts["processes"][role])] if "processes" in facts else []
        table.add_row(role, address, facts["namespaces"][role], *counted)
    out.print(table)
