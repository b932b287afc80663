"""`mpcache status`: ask every peer of a role who it is and how well it is reached; each failure with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from launch.cli.options import ConfigOption, JsonOption, TrustAuthorityOption
from launch.terminal.console import err, out, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from parties.config.role_config import RoleConfig
    from parties.status.status import PeerStatus, Trouble

T = TypeVar("T")


def run(
    config: ConfigOption,
    insecure_trust_authority: TrustAuthorityOption = False,
    probe_bytes: Annotated[
        int, typer.Option("--probe-bytes", min=0, help="Bytes sent to each peer, and back, to measure; 0: measure no rate.")
    ] = 4 << 20,
    as_json: JsonOption = False,
) -> None:
    """Ask every peer that this role knows: version, settings, models, certificate, clock, round trip, bandwidth.

    Works with the file of any role. Exit code 1 when something is wrong; the last lines say what, and what to do.
    """
    from parties.config.role_config import load_config
    from parties.identity.certificate_watcher import ending
    from parties.identity.certificates import check
    from parties.identity.trust import check_pins
    from parties.status.settings import Settings
    from parties.status.status import Trouble, ask, doubts
    from parties.wire.manifest import package_version

    role = load_config(config)
    if insecure_trust_authority:
        role = role.model_copy(update={"insecure_trust_authority": True})
    expires: datetime | None = None
    found: list[PeerStatus] = []
    own: list[Trouble] = []
    identity = _sound(own, lambda: check(role.certificates, role.name, role.role))
    pinned = _sound(own, lambda: check_pins(role)) is not None
    if identity is not None:
        expires = identity.expires
        own += doubts(role, identity)
        if ending(identity):
            reason = f"the certificate of {role.name} ends on {_day(expires)}"
            own.append(Trouble(reason, f"renew it with `mpcache certs renew --keep-key --config {config}`", minor=True))
        if pinned:
            with err.status("asking the peers"):
                found = ask(role, identity, probe_bytes)
    mark = Settings.of(role).mark()
    serious = any(not t.minor for t in [*own, *(t for status in found for t in status.troubles)])
    if as_json:
        print_json(
            {
                "ok": not serious,
                "self": {
                    "name": role.name,
                    "role": role.role,
                    "version": package_version(),
                    "settings": mark,
                    "certificate_expires": None if expires is None else expires.isoformat(),
                    "troubles": [_as_json(t) for t in own],
                },
                "peers": [_peer_as_json(status) for status in found],
            }
        )
    else:
        _print(role, package_version(), mark, expires, own, found)
    if serious:
        raise typer.Exit(1)


def _sound(own: list[Trouble], read: Callable[[], T]) -> T | None:
    """Return what `read` returns; None, with the reason in `own`, when it cannot."""
    from parties.status.status import Trouble

    try:
        return read()
    except ConfigurationError as error:
        own.append(Trouble(str(error), "nobody can be asked before that is put right"))
    return None


def _peer_as_json(status: PeerStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "role": status.role,
        "address": status.address,
        "answers": status.answers,
        "version": status.version,
        "protocol": status.protocol,
        "settings": None if status.settings is None else status.settings.mark(),
        "models": [{"id": id, "name": name, "calibrated": status.calibrated[id]} for id, name in status.models.items()],
        "certificate_expires": None if status.expires is None else status.expires.isoformat(),
        "clock_ahead_seconds": status.skew,
        "round_trip_seconds": status.round_trip,
        "upload_bytes_per_second": status.upload,
        "download_bytes_per_second": status.download,
        "troubles": [_as_json(t) for t in status.troubles],
    }


def _as_json(trouble: Trouble) -> dict[str, object]:
    return {"reason": trouble.reason, "remedy": trouble.remedy, "minor": trouble.minor}


def _print(
    role: RoleConfig, version: str, mark: str, expires: datetime | None, own: list[Trouble], found: list[PeerStatus]
) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("", "name", "role", "address", "version", "settings", "certificate until"):
        table.add_column(column, overflow="fold")
    for column in ("clock", "round trip", "to it", "from it"):
        table.add_column(column, justify="right")
    table.add_column("models", overflow="fold")
    table.add_row(_mark(own), f"{role.name} (here)", role.role, role.listen or "", version, mark, _day(expires))
    for s in found:
        table.add_row(
            _mark(s.troubles, s.answers),
            Text(s.name),
            s.role,
            Text(s.address),
            Text(s.version or "-"),
            s.settings.mark() if s.settings is not None else "-",
            _day(s.expires),
            "-" if s.skew is None else f"{s.skew:+.1f} s",
            "-" if s.round_trip is None else f"{1e3 * s.round_trip:.1f} ms",
            _rate(s.upload),
            _rate(s.download),
            Text(", ".join(n if s.calibrated[i] else f"{n} (not calibrated)" for i, n in s.models.items()) or "-"),
        )
    out.print(table)
    for trouble in [*own, *(t for s in found for t in s.troubles)]:
        style = "yellow" if trouble.minor else "bold red"
        out.print(
            Text("note     " if trouble.minor else "problem  ", style=style) + Text(trouble.reason, style="default"),
            soft_wrap=True,
        )
        out.print(Text(f"  remedy {trouble.remedy}"), soft_wrap=True)


def _mark(troubles: list[Trouble], answers: bool = True) -> Text:
    if any(not t.minor for t in troubles):
        return Text("problem" if answers else "absent", style="bold red")
    return Text("note", style="yellow") if troubles else Text("ok", style="green")


def _day(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e6:.1f} MB/s"
