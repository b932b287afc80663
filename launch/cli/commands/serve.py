"""`mpcache serve`: an OpenAI-compatible HTTP server at the user's side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    ConfigOption,
    DraftOption,
    PolicyOption,
    PromptBucketsOption,
    SuiteOption,
    SuiteOptionsOption,
    SupervisedOption,
    TrustAuthorityOption,
    chosen_draft,
    prompt_buckets,
    suite_options,
    tokenizer_option,
)
from launch.local import supervision
from launch.local.checks import check_suite
from launch.local.signals import Terminated
from launch.terminal import logs
from launch.terminal.console import err
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.serve.gateway.catalogue import Catalogue, Words
    from launch.serve.gateway.settings import GatewaySettings
    from parties.client.client import Client
    from parties.client.drafting import Draft
    from parties.client.model_reference import ModelReference

OfferedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME[=FOLDER]",
        help="A model to offer, if need be with a tokenizer of its own; may be repeated. By default every model that "
        "the tokenizer's config.json describes.",
    ),
]
ListenOption = Annotated[str, typer.Option("--listen", help="host:port to serve HTTP at.")]
AllowLogitsOption = Annotated[
    bool,
    typer.Option(
        "--allow-logits",
        help="This client may learn logits, as every party's configuration must grant; top_p, penalties ... need them.",
    ),
]
FixedLengthOption = Annotated[
    bool,
    typer.Option("--fixed-length", help="Parties generate all tokens that a request allows, and learn no answer's length."),
]
DefaultTemperatureOption = Annotated[
    float, typer.Option("--default-temperature", min=0, max=2, help="Where a request names none; 0: likeliest token.")
]
DefaultMaxTokensOption = Annotated[
    int, typer.Option("--default-max-tokens", min=1, help="Most tokens of a chat answer where a request names none.")
]
MaxConcurrentOption = Annotated[int, typer.Option("--max-concurrent", min=1, help="Requests at the parties at a time.")]
MaxQueueOption = Annotated[
    int, typer.Option("--max-queue", min=0, help="Requests that wait for their turn; more are told when to come again.")
]
DropOption = Annotated[
    bool,
    typer.Option(
        "--drop-unsupported",
        help="Leave out parameters that cannot be met, which X-Dropped-Parameters then names, instead of refusing them.",
    ),
]
DefaultPrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix", help="Registered prefix of requests that name none: a name, or auto, for what a prompt begins with."
    ),
]
MaxBodyBytesOption = Annotated[int, typer.Option("--max-body-bytes", min=1024, help="Largest request.")]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="Bearer keys that requests need, one a line (mode 0600); by default gateway-keys.txt beside the "
        "configuration, made at the first start.",
    ),
]
NoKeyOption = Annotated[
    bool, typer.Option("--insecure-no-key", help="Ask for no key: every user and program of the machine may ask.")
]
AllowedHostOption = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help="A name that requests may call this server by; may be repeated."),
]
CertificateOption = Annotated[Path | None, typer.Option("--tls-certificate", help="PEM certificate chain for HTTPS.")]
CertificateKeyOption = Annotated[Path | None, typer.Option("--tls-key", help="PEM private key for HTTPS.")]
InsecureListenOption = Annotated[
    bool, typer.Option("--insecure-listen", help="Serve others without TLS: keys and prompts may be read on the way.")
]

LogFormatOption = Annotated[str, typer.Option("--log-format", help="Log lines on standard error: text or json.")]


def run(
    config: ConfigOption,
    tokenizer: Annotated[Path, tokenizer_option()],
    model: OfferedOption = None,
    listen: ListenOption = "127.0.0.1:8000",
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    buckets: PromptBucketsOption = None,
    draft: DraftOption = "off",
    prefix: DefaultPrefixOption = None,
    suite_option: SuiteOptionsOption = None,
    allow_logits: AllowLogitsOption = False,
    fixed_length: FixedLengthOption = False,
    default_temperature: DefaultTemperatureOption = 0.0,
    default_max_tokens: DefaultMaxTokensOption = 256,
    max_concurrent: MaxConcurrentOption = 4,
    max_queue: MaxQueueOption = 16,
    drop_unsupported: DropOption = False,
    max_body_bytes: MaxBodyBytesOption = 1 << 20,
    api_key_file: KeyFileOption = None,
    insecure_no_key: NoKeyOption = False,
    allowed_host: AllowedHostOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: CertificateKeyOption = None,
    insecure_listen: InsecureListenOption = False,
    log_format: LogFormatOption = "text",
    insecure_trust_authority: TrustAuthorityOption = False,
    supervised: SupervisedOption = False,
) -> None:
    """Serve OpenAI's HTTP API with private generations, at the user's side; see docs/gateway.md."""
    supervision.begin("gateway", supervised)
    check_suite(suite)
    door = Door(listen, tls_certificate, tls_key, insecure_listen, checked_format(log_format))
    host = _checked_host(door, api_key_file is not None and insecure_no_key)
    keys = _given_keys(api_key_file)

    from launch.serve.gateway.settings import GatewaySettings
    from protocols.registry import SuiteSpec

    drafting = _checked_draft(draft, policy, prefix, lengths := prompt_buckets(buckets))
    client = _client(config, insecure_trust_authority)
    settings = GatewaySettings(
        suite=SuiteSpec(suite, options=suite_options(suite_option)),
        policy=policy,
        prompt_buckets=lengths,
        draft=drafting,
        prefix=prefix,
        keys=keys if keys or insecure_no_key else _own_keys(config.parent),
        allow_logits=allow_logits,
        fixed_length=fixed_length,
        default_temperature=default_temperature,
        default_max_tokens=default_max_tokens,
        max_concurrent=max_concurrent,
        max_queue=max_queue,
        drop_unsupported=drop_unsupported,
        max_body_bytes=max_body_bytes,
        hosts=frozenset({"localhost", host.lower(), *(name.lower() for name in allowed_host or [])}),
    )
    _serve(client, _catalogue(client, tokenizer, model or []), settings, door, supervised)


def _client(config: Path, trust_authority: bool) -> Client:
    """Return the client of a configuration, whose connections stay."""
    from launch.serve.roles import load_role
    from parties.client.client import Client

    return Client(load_role(config, "client", trust_authority), keep_connections=True)


def _checked_draft(draft: str, policy: str, prefix: str | None, lengths: tuple[int, ...]) -> Draft | None:
    """Return how tokens are guessed. lengths: of padded prompts. Raises `ConfigurationError` for an unknown policy, or one
    that verifies no guesses, and for what padded prompts do not go with."""
    from models.generation import GenerationPlan, check_verifiable
    from models.policies import parse

    known, drafting = parse(policy), chosen_draft(draft)
    if drafting is not None:
        check_verifiable("greedy", known, drafting.plan)
    if lengths and prefix is not None:
        raise ConfigurationError("--prefix does not go with --prompt-buckets: padding would stand between prefix and prompt")
    if lengths:
        GenerationPlan(min(lengths), 1, policy=policy, draft=None if drafting is None else drafting.plan, padded=True)
    return drafting


@dataclass(frozen=True)
class Door:
    """Where requests come in. listen: host:port; certificate, key: PEM files for HTTPS; insecure: others are served even
    without. log_format: of what is logged, text or json."""

    listen: str
    certificate: Path | None
    key: Path | None
    insecure: bool
    log_format: str = "text"


def checked_format(name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` for a format of logs that there is not."""
    if name not in ("text", "json"):
        raise ConfigurationError(f"--log-format '{name}' is unknown; choose one of: text, json")
    return name


def _checked_host(door: Door, two_ways_of_keys: bool) -> str:
    """Return the host to listen at. Raises `ConfigurationError` for options that do not go together."""
    from launch.serve.gateway.settings import check_listen
    from parties.config.role_config import split_address

    try:
        host, _ = split_address(door.listen, listening=True)
    except ValueError as error:
        raise ConfigurationError(f"--listen: {error}") from None
    if (door.certificate is None) != (door.key is None):
        raise ConfigurationError("--tls-certificate and --tls-key belong together; give both")
    if two_ways_of_keys:
        raise ConfigurationError("--api-key-file and --insecure-no-key were both given; give one of them")
    check_listen(host, door.certificate is not None, door.insecure)
    return host


def _given_keys(file: Path | None) -> tuple[bytes, ...]:
    from launch.serve.gateway.settings import read_keys

    return () if file is None else read_keys(file)


def _own_keys(folder: Path) -> tuple[bytes, ...]:
    """Return the keys of the gateway's own file in `folder`, and tell of a new one."""
    from launch.serve.gateway.settings import KEY_FILE, own_keys

    keys, made = own_keys(folder / KEY_FILE)
    if made is not None:
        err.print(_key_made(folder / KEY_FILE, made, sys.stderr.isatty()), soft_wrap=True)
    return keys


def _check_prefix(prefix: str | None, offered: list[ModelReference]) -> None:
    """Raise `ConfigurationError` where no model that is offered has the prefix of requests that name none."""
    from parties.client.prefixes import AUTO, OFF

    known = [one for reference in offered for one in reference.prefixes]
    if prefix not in (None, AUTO, OFF) and not any(prefix in (one.name, one.prefix) for one in known):
        listed = ", ".join(sorted({one.name for one in known})) or "none: their owner registers them, `mpcache prefix add`"
        raise ConfigurationError(f"--prefix '{prefix}': no model that is offered has it; registered: {listed}")


def _catalogue(client: Client, tokenizer: Path, models: list[str]) -> Catalogue:
    from launch.serve.gateway.catalogue import Catalogue, Words

    default = Words.load(tokenizer)
    return Catalogue(client, default, _wanted(models, default))


def _check_memory(client: Client, reference: ModelReference, settings: GatewaySettings) -> None:
    """Raise `EnvironmentProblem` where all parties run on this machine and have no room for a prompt of the largest bucket,
    or a usual one, and its answer."""
    from launch.predict.room import USUAL_PROMPT, check_running
    from launch.serve.gateway.requests import fitting_policy
    from models.architecture import Architecture
    from models.costs.tracing import Setting

    a, spec = reference.description, reference.over_bounds(settings.suite)
    addresses = [peer.address for peer in client.config.parties]
    if not isinstance(a, Architecture):
        setting = Setting(spec.name, len(addresses), options=spec.options, decoding=a.usual_output)
        check_running(a, setting, addresses, (min(USUAL_PROMPT, a.positions), 1))
        return
    most = max(settings.prompt_buckets, default=USUAL_PROMPT)
    prompt = min(most, a.positions)
    policy = fitting_policy(settings.policy, a, prompt)
    setting = Setting(spec.name, len(addresses), policy, spec.options, padded=bool(settings.prompt_buckets))
    check_running(a, setting, addresses, (prompt, min(settings.default_max_tokens, max(1, a.room(prompt)))))


def _serve(client: Client, catalogue: Catalogue, settings: GatewaySettings, door: Door, supervised: bool) -> None:
    """Serve until told to stop."""
    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.serve.gateway.app import Gateway
    from launch.serve.gateway.serving import listen as open_socket
    from launch.serve.gateway.serving import server as make_server
    from models.architecture import Architecture

    listener, address = open_socket(door.listen)
    server = make_server(Gateway(client, catalogue, settings).app, settings, door.certificate, door.key)
    try:
        with err.status("asking the parties") as status:
            catalogue.refresh(lambda reason: status.update(f"waiting for {reason}"))
        catalogue.check()
        _check_prefix(settings.prefix, [served.reference for served in catalogue.all()])
        for served in catalogue.all():
            if settings.draft is not None and isinstance(served.reference.description, Architecture):
                settings.draft.check(served.reference.architecture, served.words.tokenizer)
            warn_if_never_calibrated(served.reference)
            _check_memory(client, served.reference, settings)
        logs.configure(door.log_format, "info", "gateway")
        names = ", ".join(sorted(served.name for served in catalogue.all()))
        if supervised:
            supervision.report_ready(name="gateway", address=address)
        else:
            scheme = "http" if door.certificate is None else "https"
            err.print(
                f"OpenAI's API at {scheme}://{address}/v1, models: {names}; a page at {scheme}://{address}/; Ctrl-C ends it"
            )
        if door.insecure:
            err.print("--insecure-listen: whoever is on the way to this address may read keys, prompts and answers")
        if not settings.keys:
            err.print("--insecure-no-key: whoever reaches this address, any user of this machine at least, may ask")
        server.run(sockets=[listener])
    except Terminated:
        pass
    finally:
        listener.close()
        client.close()


def _wanted(items: list[str], default: Words) -> dict[str, Words]:
    """Return model name -> tokenizer, from NAME or NAME=FOLDER."""
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
    """Return what is said of a new key. A service's standard error ends in a journal, which others may read: no key goes
    there."""
    return (
        f"key for requests, shown this once and kept in {file}: {key}" if terminal else f"key for requests: made, in {file}"
    )
