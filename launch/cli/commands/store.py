"""`mpcache store`: what a compute party keeps on disk: shares of models, of rows of registered prefixes, pages, tapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from launch.cli.options import ConfigOption, JsonOption
from launch.terminal.console import byte_count, err, out, print_json
from launch.terminal.helping import Commands

if TYPE_CHECKING:
    from parties.config.role_config import RoleConfig
    from parties.party.store_check import Entry

app = Commands(
    help="What a compute party keeps on disk: shares of models and of registered prefixes, pages of caches, and tapes."
)


AGAIN = {
    "model": "remove {} and share the model again",
    "tape": "remove {} and have it dealt again (`mpcache deal`)",
    "session": "stop the party and run `mpcache store gc`",
    "prefix": "take it away and register it again (`mpcache prefix rm`, `mpcache prefix add`), the party running",
}


def _party(config: Path) -> tuple[RoleConfig, Path]:
    """Return a party's configuration and its store. Raises `ConfigurationError` for another role's."""
    from launch.serve.roles import load_role

    settings = load_role(config, "party")
    assert settings.store is not None
    return settings, settings.store


@app.command("ls")
def show(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List models, prefixes, pages of sessions, tapes and what a crash left, with sizes, and how much of the quotas is
    used."""
    settings, store = _party(config)
    found, limits = _entries(settings, store), settings.limits
    used = {kind: sum(one.size for one in found if one.kind == kind) for kind in ("prefix", "session", "tape")}
    if as_json:
        names = ("max_prefix_bytes", "max_paged_bytes", "max_tape_bytes")
        quotas = {name: getattr(limits, name) for name in names}
        bytes_by_kind = {"prefix_bytes": used["prefix"], "paged_bytes": used["session"], "tape_bytes": used["tape"]}
        print_json({"entries": [_as_json(one) for one in found], **bytes_by_kind, **quotas})
        return
    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "id", "owner", "size", "state"):
        table.add_column(column, overflow="fold")
    for one in found:
        state = "damaged" if one.problem else one.needless or "kept"
        table.add_row(one.kind, one.name, one.id, one.owner, byte_count(one.size), state)
    out.print(table if found else f"nothing lies in {store}")
    out.print(f"prefixes: {byte_count(used['prefix'])} of {byte_count(limits.max_prefix_bytes)} (max_prefix_bytes)")
    out.print(f"caches in pages: {byte_count(used['session'])} of {byte_count(limits.max_paged_bytes)} (max_paged_bytes)")
    if settings.tapes is not None:
        most = "" if limits.max_tape_bytes is None else f" of {byte_count(limits.max_tape_bytes)} (max_tape_bytes)"
        out.print(f"tapes: {byte_count(used['tape'])}{most} in {settings.tapes}")


def _entries(settings: RoleConfig, store: Path) -> list[Entry]:
    """Return what lies in the store and in the folder of tapes."""
    from parties.party.store_check import entries
    from parties.party.tape_check import tape_entries

    return [*entries(store, settings.name), *tape_entries(settings)]


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
    from parties.party.store_check import verify

    settings, store = _party(config)
    with err.status("reading the store"):
        found = [(one, verify(one)) for one in _entries(settings, store) if one.kind != "incomplete"]
    damaged = [(one, problem) for one, problem in found if problem]
    if as_json:
        print_json({"ok": not damaged, "entries": [{**_as_json(one), "problem": problem or None} for one, problem in found]})
    else:
        for one, problem in damaged:
            where = one.folder / f"{one.id}.*" if one.kind == "tape" else one.folder
            out.print(f"{one.kind} {one.name} ({one.id}): {problem}; {AGAIN[one.kind].format(where)}", soft_wrap=True)
        out.print(f"{len(found) - len(damaged)} of {len(found)} are what was stored")
    if damaged:
        raise typer.Exit(1)


@app.command("gc")
def collect(
    config: ConfigOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what nothing will ever use: prefixes without their model, used tapes, and what a crash left. Stop the party
    first: what it is writing looks as if a crash had left it, and it removes that itself when it starts."""
    from parties.party import store_check

    settings, store = _party(config)
    needless = [one for one in _entries(settings, store) if one.needless]
    if needless and not dry_run:
        store_check.collect(store, settings.name, needless)
    for one in needless:
        out.print(f"{'would remove' if dry_run else 'removed'} {one.kind} {one.name} ({one.id}): {one.needless}")
    total = byte_count(sum(one.size for one in needless))
    out.print(f"{total} {'would be' if dry_run else 'are'} free again" if needless else "nothing is needless")


@app.command("key")
def make_key(file: Annotated[Path, typer.Argument(help="The new file, for 'store_key' of a party.")]) -> None:
    """Make a key under which a party encrypts pages of its store, in a file that only its owner may read."""
    from mpc.errors import ConfigurationError
    from mpc.random import new_seed
    from parties.files import write_new

    try:
        write_new(file, new_seed().hex().encode())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be made ({error.strerror}): choose another place") from None
    out.print(f"{file} holds a new key; name it as 'store_key' in the party's file, and keep a copy in a safe place")
