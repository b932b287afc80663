"""What the demos show: who takes part, their processes, the check against plaintext, the costs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.terminal.console import out

if TYPE_CHECKING:
    from launch.local.deployment import LocalDeployment

WHO = (
    ("client", "has document and question; alone sees the answer"),
    ("model owner", "has the weights; shares them once, then leaves"),
    ("compute parties", "compute on shares, each uniformly random; see lengths only"),
    ("dealer", "deals correlated randomness; sees no data and no share"),
    ("authority", "certified their names; its key is gone by now"),
)


def show_roles() -> None:
    """Show who sees what."""
    who = Table.grid(padding=(0, 2))
    for name, role in WHO:
        who.add_row(Text(name, style="bold"), role)
    out.print(Panel(who, title="Who sees what", title_align="left", expand=False))


def show_processes(deployment: LocalDeployment, model: str, parameters: int) -> None:
    """Show the running processes, and that the model owner's has ended."""
    table = Table.grid(padding=(0, 2))
    table.add_row("  client", f"process {os.getpid()}", "this one")
    for child in deployment.children:
        table.add_row(f"  {child.name}", f"process {child.pid}", f"at {child.ready['address']}" if child.ready else "")
    table.add_row("  model-owner", "ended", f"has shared {parameters:,} weights of the model {model}")
    out.print("\n[bold]Processes[/bold]")
    out.print(table)


def show_verdict(what: str, value: str, same: bool) -> None:
    """Show a line of the check."""
    mark = Text("equal", style="bold green") if same else Text("DIFFERENT", style="bold red")
    out.print(Text.assemble(f"  {what:<28}{value.strip()}   ", mark))


def show_costs(costs: dict[str, dict[str, object]], first: float, each: float | None) -> None:
    """Show seconds, and the tables of rounds and bytes."""
    from launch.terminal.session_costs import cost_tables

    rate = f", then {each:.2f} s a token" if each is not None else ""
    out.print(f"\n[bold]Cost[/bold] (first token after {first:.1f} s{rate})")
    out.print("sends: bytes to the other parties; offline: bytes from the dealer, which no input is needed for.")
    for table in cost_tables(costs):
        out.print(table)
