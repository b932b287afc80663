"""`mpcache store`: what a compute party keeps on disk: shares of models, and of rows of registered prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from launch.cli.options import ConfigOption, JsonOption
from launch.terminal.console import byte_count, err, out, print_json

if TYPE_CHECKING:
    from parties.config.role_config import RoleConfig
    from parties.party.store_check import Entry

app = typer.Typer(help="What a compute party keeps on disk: shares of models, and of registered prefixes.")


def _party(config: Path) -> tuple[RoleConfig, Path]:
    """Return a party's configuration and its store. Raises `ConfigurationError` for another role's."""
    from launch.serve.roles import load_role

    settings = load_role(config, "party")
    assert settings.store is not None
    return settings, settings.store


@app.command("ls")
def show(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List models, prefixes and what a crash left, with sizes, and how much of the quota of prefixes is used."""
    from parties.party.store_check import entries

    settings, store = _party(config)
    found, most = entries(store), settings.limits.max_prefix_bytes
    used = sum(one.size for one in found if one.kind == "prefix")
    if as_json:
        print_json({"entries": [_as_json(one) for one in found], "prefix_bytes": used, "max_prefix_bytes": most})
        return
    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "id", "owner", "size", "state"):
        table.add_column(column, overflow="fold")
    for one in found:
        state = "damaged" if one.problem else one.needless or "in use"
        table.add_row(one.kind, one.name, one.id, one.owner, byte_count(one.size), state)
    out.print(table if found else f"nothing lies in {store}")
    out.print(f"prefixes: {byte_count(used)} of {byte_count(most)} (max_prefix_bytes)")


def _as_json(one: Entry) -> dict[str, object]:
    return {
        "kind": one.kind,
        "name": one.name,
        "id": one.id,
        "owner": one.owner,
        "bytes": one.size,
        "problem": one.problem or None,
        "needless": one.needless or None,
    }


@app.command("verify")
def check(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Read all that is stored and compare it with what was stored. Exit code 1 when something is damaged."""
    from parties.party.store_check import entries, verify

    _, store = _party(config)
    with err.status("reading the store"):
        found = [(one, verify(one)) for one in entries(store) if one.kind != "incomplete"]
    damaged = [(one, problem) for one, problem in found if problem]
    if as_json:
        print_json({"ok": not damaged, "entries": [{**_as_json(one), "problem": problem or None} for one, problem in found]})
    else:
        for one, problem in damaged:
            again = "share the model again" if one.kind == "model" else "register the prefix again"
            out.print(f"{one.kind} {one.name} ({one.id}): {problem}; remove {one.folder} and {again}", soft_wrap=True)
        out.print(f"{len(found) - len(damaged)} of {len(found)} are what was stored")
    if damaged:
        raise typer.Exit(1)


@app.command("gc")
def collect(
    config: ConfigOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what nothing will ever use: prefixes without their model, and what a crash left. Stop the party first: what it
    is writing looks as if a crash had left it."""
    from parties.party import store_check

    _, store = _party(config)
    needless = [one for one in store_check.entries(store) if one.needless]
    for one in needless:
        if not dry_run:
            store_check.collect(one)
        out.print(f"{'would remove' if dry_run else 'removed'} {one.kind} {one.name} ({one.id}): {one.needless}")
    total = byte_count(sum(one.size for one in needless))
    out.print(f"{total} {'would be' if dry_run else 'are'} free again" if needless else "nothing is needless")
