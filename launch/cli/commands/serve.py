"""`mpcache serve`: an OpenAI-compatible HTTP server at the user's side."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    ConfigOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    SupervisedOption,
    TrustAuthorityOption,
    check_suite,
    suite_options,
    tokenizer_option,
)
from launch.local import supervision
from launch.local.signals import Terminated
from launch.terminal.console import err
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.serve.gateway.catalogue import Words


def run(
    config: ConfigOption,
    tokenizer: Annotated[Path, tokenizer_option()],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[=FOLDER]",
            help="A model to offer, if need be with a tokenizer of its own; may be repeated. By default every model that "
            "the tokenizer's config.json describes.",
        ),
    ] = None,
    listen: Annotated[str, typer.Option("--listen", help="host:port to serve HTTP at.")] = "127.0.0.1:8000",
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    suite_option: SuiteOptionsOption = None,
    allow_logits: Annotated[
        bool,
        typer.Option(
            "--allow-logits",
            help="This client may learn logits, as every party's configuration must grant; top_p and top_k need them.",
        ),
    ] = False,
    fixed_length: Annotated[
        bool,
        typer.Option(
            "--fixed-length", help="Parties generate all tokens that a request allows, and learn no answer's length."
        ),
    ] = False,
    default_temperature: Annotated[
        float, typer.Option("--default-temperature", min=0, max=2, help="Where a request names none; 0: likeliest token.")
    ] = 0.0,
    default_max_tokens: Annotated[
        int, typer.Option("--default-max-tokens", min=1, help="Most tokens of a chat answer where a request names none.")
    ] = 256,
    max_concurrent: Annotated[
        int, typer.Option("--max-concurrent", min=1, help="Generations at a time; more requests are told to come again.")
    ] = 4,
    max_body_bytes: Annotated[int, typer.Option("--max-body-bytes", min=1024, help="Largest request.")] = 1 << 20,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="Bearer keys that requests need, one a line (mode 0600); by default gateway-keys.txt beside the "
            "configuration, made at the first start.",
        ),
    ] = None,
    insecure_no_key: Annotated[
        bool, typer.Option("--insecure-no-key", help="Ask for no key: every user and program of the machine may ask.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="A name that requests may call this server by; may be repeated."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM certificate chain for HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM private key for HTTPS.")] = None,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Serve others without TLS: keys and prompts may be read on the way.")
    ] = False,
    insecure_trust_authority: TrustAuthorityOption = False,
    supervised: SupervisedOption = False,
) -> None:
    """Serve OpenAI's HTTP API with private generations, at the user's side; see docs/gateway.md."""
    if supervised:
        supervision.end_with_parent()
    from launch.serve.gateway.settings import KEY_FILE, GatewaySettings, check_listen, own_keys, read_keys
    from parties.config.role_config import split_address

    check_suite(suite)
    try:
        host, _ = split_address(listen, listening=True)
    except ValueError as error:
        raise ConfigurationError(f"--listen: {error}") from None
    if (tls_certificate is None) != (tls_key is None):
        raise ConfigurationError("--tls-certificate and --tls-key belong together; give both")
    if insecure_no_key and api_key_file is not None:
        raise ConfigurationError("--api-key-file and --insecure-no-key were both given; give one of them")
    check_listen(host, tls_certificate is not None, insecure_listen)
    keys = () if api_key_file is None else read_keys(api_key_file)

    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.serve.gateway.app import Gateway
    from launch.serve.gateway.catalogue import Catalogue, Words
    from launch.serve.gateway.serving import listen as open_socket
    from launch.serve.gateway.serving import server as make_server
    from launch.serve.roles import load_role
    from models.policies import parse
    from parties.client.client import Client
    from protocols.registry import SuiteSpec

    parse(policy)
    spec = SuiteSpec(suite, options=suite_options(suite_option))
    client = Client(load_role(config, "client", insecure_trust_authority), keep_connections=True)
    if not keys and not insecure_no_key:
        keys, made = own_keys(config.parent / KEY_FILE)
        if made is not None:
            err.print(_key_made(config.parent / KEY_FILE, made, sys.stderr.isatty()), soft_wrap=True)
    settings = GatewaySettings(
        suite=spec,
        policy=policy,
        allow_logits=allow_logits,
        fixed_length=fixed_length,
        default_temperature=default_temperature,
        default_max_tokens=default_max_tokens,
        max_concurrent=max_concurrent,
        max_body_bytes=max_body_bytes,
        keys=keys,
        hosts=frozenset({"localhost", host.lower(), *(name.lower() for name in allowed_host or [])}),
    )
    default = Words.load(tokenizer)
    catalogue = Catalogue(client, default, _wanted(model or [], default))
    listener, address = open_socket(listen)
    gateway = Gateway(client, catalogue, settings)
    server = make_server(gateway, tls_certificate, tls_key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with err.status("asking the parties") as status:
            catalogue.refresh(lambda reason: status.update(f"waiting for {reason}"))
        catalogue.check()
        for served in catalogue.all():
            warn_if_never_calibrated(served.reference)
        names = ", ".join(sorted(served.name for served in catalogue.all()))
        if supervised:
            supervision.report_ready(name="gateway", address=address)
        else:
            scheme = "http" if tls_certificate is None else "https"
            err.print(f"OpenAI's API at {scheme}://{address}/v1, models: {names}; Ctrl-C ends it")
        if insecure_listen:
            err.print("--insecure-listen: whoever is on the way to this address may read keys, prompts and answers")
        if insecure_no_key:
            err.print("--insecure-no-key: whoever reaches this address, any user of this machine at least, may ask")
        server.run(sockets=[listener])
    except Terminated:
        pass
    finally:
        listener.close()
        client.close()


def _wanted(items: list[str], default: Words) -> dict[str, Words]:
    """Model name -> tokenizer, from NAME or NAME=FOLDER."""
    from launch.serve.gateway.catalogue import Words

    found: dict[str, Words] = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if not name or (equals and not folder):
            raise ConfigurationError(f"--model '{item}' is not NAME or NAME=FOLDER")
        if name in found:
            raise ConfigurationError(f"--model '{name}' was given twice")
        found[name] = Words.load(Path(folder)) if equals else default
    return found


def _key_made(file: Path, key: str, terminal: bool) -> str:
    """What is said of a new key. A service's standard error ends in a journal, which others may read: no key goes there."""
    return (
        f"key for requests, shown this once and kept in {file}: {key}" if terminal else f"key for requests: made, in {file}"
    )
