"""`mpcache certs`: an authority, and an identity for every role of a deployment.

Without a sub-command all is made in one place, for trying things out. `request`, `sign` and `install` get a certificate to a
role without its private key leaving its host; `renew` begins that again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from launch.console import out
from launch.options import ConfigOption
from mpc.errors import ConfigurationError

T = TypeVar("T")

app = typer.Typer(invoke_without_command=True, no_args_is_help=True)


@app.callback()
def run(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; must hold no authority yet. All keys lie in it.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--names", help="Names of the roles, separated by commas; may be repeated.")
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Validity of the identities and of the authority.")] = 365,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="Host names or addresses that the roles are reached at, separated by commas."),
    ] = None,
) -> None:
    """Make certificates: all in one place with --out and --names, or role by role with the commands below.

    With --out and --names: an authority and one identity per role. Each role needs its own NAME.crt and NAME.key and the
    common authority.crt. authority.key stays where identities are made. On several hosts, `mpcache init` and the commands
    below keep every private key on the host that it was made on.
    """
    if context.invoked_subcommand is not None:
        if directory is not None or names or hosts:
            raise ConfigurationError(f"--out, --names and --hosts do not go before '{context.invoked_subcommand}'")
        return
    from parties.certificates import create_deployment

    wanted = split(names)
    if directory is None or not wanted:
        raise ConfigurationError(f"{'--out' if directory is None else '--names'} is missing; see `mpcache certs --help`")
    try:
        create_deployment(directory, wanted, days, hosts=split(hosts))
    except OSError as error:
        raise ConfigurationError(f"--out {directory} cannot be written: {error.strerror}; name a folder that can") from None
    out.print(f"{directory}: authority.crt, authority.key (keep it to yourself), and for each role NAME.crt and NAME.key:")
    for name in wanted:
        out.print(f"  {name}: copy {name}.crt, {name}.key and authority.crt to its host")


@app.command()
def request(config: ConfigOption) -> None:
    """Make a private key on this host, and a request for its certificate. The key never leaves the host."""
    from parties.config import load_config
    from parties.requests import create_request

    settings = load_config(config)
    if (settings.certificates / f"{settings.name}.crt").exists():
        raise ConfigurationError(
            f"{settings.name} has a certificate already in {settings.certificates}; "
            f"`mpcache certs renew --config {config}` asks for the next one"
        )
    file, mark = _writing(settings.certificates, lambda: create_request(settings.certificates, settings.name))
    _tell(settings.name, config, file, mark)


@app.command()
def renew(
    config: ConfigOption,
    keep_key: Annotated[bool, typer.Option("--keep-key", help="For the key that is in use, instead of a new one.")] = False,
) -> None:
    """Request the next certificate of this role, for a new private key. Running servers take it up once it is installed."""
    from parties.config import load_config
    from parties.requests import create_request

    settings = load_config(config)
    if not (settings.certificates / f"{settings.name}.crt").exists():
        raise ConfigurationError(
            f"{settings.name} has no certificate yet in {settings.certificates}; "
            f"use `mpcache certs request --config {config}`"
        )
    file, mark = _writing(settings.certificates, lambda: create_request(settings.certificates, settings.name, keep_key))
    _tell(settings.name, config, file, mark)


@app.command()
def sign(
    requests: Annotated[list[Path], typer.Argument(help="Requests, NAME.csr each.")],
    authority: Annotated[Path, typer.Option("--authority", help="The authority's folder, with authority.key.")],
    days: Annotated[float, typer.Option("--days", help="Validity, at most that of the authority itself.")] = 365,
    name: Annotated[
        str | None, typer.Option("--name", help="Whom the request must be from; needed where `mpcache init` was not used.")
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="Hosts that the certificate names, instead of those that `mpcache init` recorded."),
    ] = None,
    mark: Annotated[
        str | None, typer.Option("--fingerprint", help="What the role's host has shown; anything else is not signed.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Where to put the certificate; by default beside the request.")
    ] = None,
) -> None:
    """Answer certificate requests, on the authority's host. Names must be those that `mpcache init` recorded."""
    from parties.authority import sign_request
    from parties.requests import fingerprint_of

    if len(requests) > 1 and (name or mark or target):
        raise ConfigurationError("--name, --fingerprint and --out are for one request; give one")
    chosen = None if hosts is None else split(hosts)
    for file in requests:
        answer = partial(sign_request, authority, file, days, chosen, name, mark, target)
        made, certificate = _writing(authority, answer)
        out.print(f"{made}: valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", soft_wrap=True)
        out.print(f"  fingerprint of the key: {fingerprint_of(certificate)}", soft_wrap=True)
        out.print(f"  send it back; there: mpcache certs install --config {made.stem}.yaml {made.name}", soft_wrap=True)


@app.command()
def install(
    config: ConfigOption,
    certificate: Annotated[Path, typer.Argument(help="The authority's answer, NAME.crt.")],
    authority: Annotated[
        Path | None, typer.Option("--authority", help="A new authority.crt; may hold the old one as well.")
    ] = None,
) -> None:
    """Check the authority's answer and put it in place, with its key. A running server takes it up by itself."""
    from parties.config import load_config
    from parties.requests import install as put

    settings = load_config(config)
    identity = _writing(settings.certificates, lambda: put(settings.certificates, settings.name, certificate, authority))
    out.print(
        f"{identity.certificate_file}: {identity.name}, valid until {identity.expires:%Y-%m-%d %H:%M} UTC", soft_wrap=True
    )


def _writing(folder: Path, work: Callable[[], T]) -> T:
    """The result of `work`; trouble with files is an error of the user's."""
    try:
        return work()
    except OSError as error:
        where = error.filename or folder
        raise ConfigurationError(f"{where} cannot be written: {error.strerror}; give this user the right to") from None


def _tell(name: str, config: Path, file: Path, mark: str) -> None:
    out.print(f"{file}: send it to the authority's host; the private key stays here", soft_wrap=True)
    out.print(f"  fingerprint of the key: {mark}", soft_wrap=True)
    out.print(f"  there: mpcache certs sign --authority authority {file.name}", soft_wrap=True)
    out.print(f"  then here: mpcache certs install --config {config} {name}.crt", soft_wrap=True)


def split(values: list[str] | None) -> list[str]:
    """Items of a list whose parts may hold several, separated by commas."""
    return [item.strip() for value in values or [] for item in value.split(",") if item.strip()]
