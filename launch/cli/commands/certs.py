"""`mpcache certs`: an authority, and an identity for every role of a deployment.

Without a sub-command all is made in one place, for trying things out. `request`, `sign` and `install` get a certificate to a
role without its private key leaving its host; `renew` begins that again. `fingerprint` and `pin` say which key a peer has,
`revoke` which key nobody has any more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from launch.cli.options import ConfigOption
from launch.terminal.console import out
from launch.terminal.helping import Commands
from mpc.errors import ConfigurationError

T = TypeVar("T")

app = Commands(invoke_without_command=True, no_args_is_help=True)


@app.callback()
def run(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; must hold no authority yet. All keys lie in it.")
    ] = None,
    parties: Annotated[
        list[str] | None, typer.Option("--parties", help="Names of the compute parties, separated by commas.")
    ] = None,
    dealer: Annotated[str, typer.Option("--dealer", help="Name of the dealer.")] = "dealer",
    clients: Annotated[
        list[str] | None, typer.Option("--clients", help="Names, separated by commas; default: client.")
    ] = None,
    model_owners: Annotated[
        list[str] | None, typer.Option("--model-owners", help="Names, separated by commas; default: model-owner.")
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Validity of the identities and of the authority.")] = 365,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="Host names or addresses that the roles are reached at, separated by commas."),
    ] = None,
) -> None:
    """Make certificates: all in one place with --out and --parties, or role by role with the commands below.

    With --out and --parties: an authority and one identity per role. Each role needs its own NAME.crt and NAME.key and the
    common authority.crt. The folder authority, which can make identities of any name, belongs on no role's host. On several
    hosts, `mpcache init` and the commands below keep every private key on the host that it was made on.
    """
    if context.invoked_subcommand is not None:
        if directory is not None or parties or hosts or clients or model_owners:
            raise ConfigurationError(
                f"--out, --parties, --clients, --model-owners and --hosts do not go before '{context.invoked_subcommand}'"
            )
        return
    from parties.identity.certificates import create_deployment
    from parties.names import Role

    if directory is None or not split(parties):
        missing = "--out" if directory is None else "--parties"
        raise ConfigurationError(f"{missing} is missing; see `mpcache certs --help`")
    owners = split(model_owners) or ["model-owner"]
    listed: list[tuple[str, Role]] = [
        *((name, "party") for name in split(parties)),
        (dealer, "dealer"),
        *((name, "client") for name in split(clients) or ["client"]),
        *((name, "model-owner") for name in owners),
    ]
    names = [name for name, _ in listed]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"the name '{twice}' is given to two roles: every role needs a name of its own")
    made = _writing(directory, lambda: create_deployment(directory, dict(listed), days, hosts=split(hosts)))
    out.print(f"{directory}: authority.crt, for each role NAME.crt and NAME.key, and authority/", soft_wrap=True)
    for name, mark in made.items():
        out.print(f"{name} {mark}", soft_wrap=True)
    out.print("These are the keys' fingerprints: `mpcache certs pin --config FILE NAME=FINGERPRINT ...` writes them.")


@app.command()
def request(config: ConfigOption) -> None:
    """Make a private key on this host, and a request for its certificate. The key never leaves the host."""
    from parties.config.role_config import load_config
    from parties.identity.requests import create_request

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
    keep_key: Annotated[
        bool, typer.Option("--keep-key", help="For the key that is in use: peers know its fingerprint. Else for a new one.")
    ] = False,
) -> None:
    """Request the next certificate of this role. Running servers take it up once it is installed.

    A new key has a new fingerprint, which every peer must have in its file before the certificate is installed:
    `mpcache certs pin --keep`.
    """
    from parties.config.role_config import load_config
    from parties.identity.requests import create_request

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
    role: Annotated[str | None, typer.Option("--role", help="And as what: party, dealer, client or model-owner.")] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="Hosts that the certificate names, instead of those that `mpcache init` recorded."),
    ] = None,
    marks: Annotated[
        list[str] | None,
        typer.Option(
            "--fingerprint",
            metavar="F|NAME=F|FILE",
            help="What `mpcache certs fingerprint` shows on the role's host; asked for where it is missing.",
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Where to put the certificate; by default beside the request.")
    ] = None,
) -> None:
    """Answer certificate requests, on the authority's host. Names must be those that `mpcache init` recorded.

    Nothing is signed before the fingerprint of the request's key was typed, or given, as the role's owner reads it out: a
    request that was exchanged on its way is found then.
    """
    from parties.identity.authority import name_in, sign_request
    from parties.identity.fingerprints import fingerprint_of
    from parties.names import ROLES

    if len(requests) > 1 and (name or role or target):
        raise ConfigurationError("--name, --role and --out are for one request; give one")
    if (name is None) != (role is None):
        raise ConfigurationError("--name and --role belong together; give both")
    known = next((one for one in ROLES if one == role), None)
    if role is not None and known is None:
        raise ConfigurationError(f"--role '{role}' is unknown; choose one of: {', '.join(ROLES)}")
    chosen = None if hosts is None else split(hosts)
    given = _given(marks or [], [name_in(file) for file in requests])
    for file in requests:
        mark = given.get(name_in(file)) or _asked(file, name_in(file))
        answer = partial(sign_request, authority, file, mark, days, chosen, name, known, target)
        made, certificate = _writing(authority, answer)
        out.print(f"{made}: valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", soft_wrap=True)
        out.print(f"  fingerprint of the key: {fingerprint_of(certificate)}", soft_wrap=True)
        out.print(f"  send it back; there: mpcache certs install --config {made.stem}.yaml {made.name}", soft_wrap=True)


def _given(marks: list[str], names: list[str]) -> dict[str, str]:
    """Return the fingerprints by name, from the option."""
    from launch.deployment.pins import read_pins
    from parties.names import read_fingerprint

    if len(marks) == len(names) == 1 and "=" not in marks[0]:
        with suppress(ValueError):
            return {names[0]: read_fingerprint(marks[0])}
    found = read_pins(marks)
    if several := next((name for name in names if len(found.get(name, ())) > 1), None):
        raise ConfigurationError(f"--fingerprint: '{several}' has several: give the one of the key that the request is for")
    return {name: found[name][0] for name in names if name in found}


def _asked(request: Path, name: str) -> str:
    """Ask a person for the fingerprint. The request's own is not shown before: it would be copied from there."""
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"{request} is signed only with the fingerprint that `mpcache certs fingerprint` shows on the host of {name}: "
            f"give it, --fingerprint {name}=F"
        )
    return str(typer.prompt(f"{request}: the fingerprint that the owner of {name} reads out"))


@app.command()
def install(
    config: ConfigOption,
    certificate: Annotated[Path, typer.Argument(help="The authority's answer, NAME.crt.")],
    authority: Annotated[
        Path | None, typer.Option("--authority", help="A new authority.crt; may hold the old one as well.")
    ] = None,
) -> None:
    """Check the authority's answer and put it in place, with its key. A running server takes it up by itself."""
    from parties.config.role_config import load_config
    from parties.identity.requests import install as put

    settings = load_config(config)
    folder = settings.certificates
    identity = _writing(folder, lambda: put(folder, settings.name, certificate, authority, settings.role))
    out.print(
        f"{identity.certificate_file}: {identity.name}, valid until {identity.expires:%Y-%m-%d %H:%M} UTC", soft_wrap=True
    )


@app.command("fingerprint")
def show_fingerprint(config: ConfigOption) -> None:
    """Print the fingerprint of this role's key, a line NAME FINGERPRINT. Its peers write it into their files."""
    from parties.config.role_config import load_config
    from parties.identity.requests import fingerprints

    settings = load_config(config)
    found = fingerprints(settings.certificates, settings.name)
    if not found:
        raise ConfigurationError(
            f"{settings.certificates} has no key of '{settings.name}': `mpcache certs request --config {config}` makes one"
        )
    for mark, state in found.items():
        out.print(f"{settings.name} {mark}{'' if len(found) == 1 else f'  # {state}'}", soft_wrap=True)


@app.command()
def pin(
    config: ConfigOption,
    items: Annotated[
        list[str], typer.Argument(metavar="NAME=FINGERPRINT|FILE...", help="Or a file of lines NAME FINGERPRINT.")
    ],
    keep: Annotated[
        bool, typer.Option("--keep", help="Let those that are there count too, while a peer changes its key.")
    ] = False,
) -> None:
    """Write peers' fingerprints into this role's file. A running server reads them when it is started again.

    Take them from the peers themselves, not from the authority: they are what an authority cannot forge.
    """
    from launch.deployment.pins import pin as write
    from launch.deployment.pins import read_pins

    pins = read_pins(items)
    written = _writing(config.parent, lambda: write(config, pins, keep))
    for name, marks in written.items():
        out.print(f"{config}: {name} {' '.join(marks)}", soft_wrap=True)
    for name in [name for name in pins if name not in written]:
        out.print(f"{config}: {name} is not among this role's peers, nothing to write", soft_wrap=True)


@app.command("revoke")
def revoke_key(
    config: ConfigOption,
    items: Annotated[list[str], typer.Argument(metavar="FINGERPRINT|NAME.crt...", help="Keys that are trusted no more.")],
    why: Annotated[str, typer.Option("--why", help="A comment for the list.")] = "",
) -> None:
    """Trust a key no more, at this role: no call or connection of it begins, and sessions with it end. No restart is needed.

    The list is revoked.txt in the certificate folder. Run this at every role that knows the key.
    """
    from parties.config.role_config import load_config
    from parties.identity.certificates import name_of, read_certificates
    from parties.identity.fingerprints import fingerprint_of
    from parties.identity.revocation import REVOKED, revoke
    from parties.names import read_fingerprint

    settings = load_config(config)
    for item in items:
        comment = why
        if Path(item).exists():
            certificate = read_certificates(Path(item))[0]
            mark, comment = fingerprint_of(certificate), " ".join([name_of(certificate), why])
        else:
            try:
                mark = read_fingerprint(item)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
        added = _writing(settings.certificates, partial(revoke, settings.certificates, mark, comment))
        what = "is revoked" if added else "was revoked before"
        out.print(f"{settings.certificates / REVOKED}: {mark} {what}", soft_wrap=True)


def _writing(folder: Path, work: Callable[[], T]) -> T:
    """Return the result of `work`; trouble with files is an error of the user's."""
    try:
        return work()
    except OSError as error:
        where = error.filename or folder
        raise ConfigurationError(f"{where} cannot be written: {error.strerror}; give this user the right to") from None


def _tell(name: str, config: Path, file: Path, mark: str) -> None:
    out.print(f"{file}: send it to the authority's host; the private key stays here", soft_wrap=True)
    out.print(f"  fingerprint of the key: {mark}", soft_wrap=True)
    out.print("  read it out to the authority and to every peer, who write it into their files", soft_wrap=True)
    out.print(f"  there, in the authority's folder: mpcache certs sign --authority . {file.name}", soft_wrap=True)
    out.print(f"  then here: mpcache certs install --config {config} {name}.crt", soft_wrap=True)


def split(values: list[str] | None) -> list[str]:
    """Return the items of a list whose parts may hold several, separated by commas."""
    return [item.strip() for value in values or [] for item in value.split(",") if item.strip()]
