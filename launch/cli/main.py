"""The command `mpcache`. Each sub-command is one file in `launch/cli/commands`, registered by one line here."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from launch.cli.commands import (
    bench,
    calibrate,
    certs,
    chat,
    check,
    classify,
    client,
    convert,
    deal,
    dealer,
    demo,
    doctor,
    embed,
    estimate,
    fetch,
    fit,
    gates,
    generate,
    init,
    lab,
    load,
    model_owner,
    party,
    peers,
    plan,
    prefix,
    quality,
    ray,
    report,
    serve,
    status,
    store,
    trace,
)
from launch.local import signals
from launch.terminal.console import (
    ERROR_EXIT,
    Settings,
    end_without_reader,
    exit_code,
    replace_what_cannot_be_written,
    show_error,
    show_usage,
    write,
)
from launch.terminal.helping import Commands
from launch.terminal.streams import closed
from mpc.errors import ConfigurationError

RESULT_ELSEWHERE = frozenset({"party", "dealer", "deal", "model-owner", "serve", "ray", "bench-process"})
"""Commands whose result is not on standard output, so that it may be closed."""
USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""Wrong usage: UsageError, of click or of typer's own copy of it."""

app = Commands(
    help="Private language-model inference on secret shares.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.run)
app.command("generate")(generate.run)
app.command("chat")(chat.run)
app.command("classify")(classify.run)
app.command("embed")(embed.run)
app.command("fetch")(fetch.run)
app.command("convert")(convert.run)
app.command("party")(party.run)
app.command("dealer")(dealer.run)
app.command("deal")(deal.run)
app.command("client")(client.run)
app.command("serve")(serve.run)
app.command("model-owner")(model_owner.run)
app.add_typer(prefix.app, name="prefix")
app.add_typer(store.app, name="store")
app.command("init")(init.run)
app.add_typer(certs.app, name="certs")
app.command("status")(status.run)
app.command("calibrate")(calibrate.run)
app.command("fit")(fit.run)
app.command("check")(check.run)
app.command("doctor")(doctor.run)
app.command("estimate")(estimate.run)
app.command("load")(load.run)
app.command("plan")(plan.run)
app.command("quality")(quality.run)
app.command("report")(report.run)
app.command("trace")(trace.run)
app.command("gates")(gates.run)
app.add_typer(lab.app, name="lab")
app.add_typer(ray.app, name="ray")
app.command("bench")(bench.run)
app.add_typer(peers.app, name="peers")
app.command("bench-process", hidden=True)(bench.process)


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"mpcache {version('mpcache')}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Go on where this machine is predicted to lack memory for what is asked.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    Settings.debug, Settings.yes = debug, yes
    command = context.invoked_subcommand
    if "stdout" in closed and command not in RESULT_ELSEWHERE:
        raise ConfigurationError(
            f"standard output is closed, and the result of `mpcache {command}` goes there; leave it open, or send it to "
            "/dev/null"
        )


@cache
def commands() -> Any:
    """Return all commands with their options, as they are parsed; made once in a process."""
    return typer.main.get_command(app)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 an error or wrong usage, 3 an answer ended because a value left
    its range, 130 Ctrl-C, 141 the reader of its output left, 143 terminated."""
    signals.install()
    Settings.as_json = Settings.answered = False
    replace_what_cannot_be_written()
    end_without_reader()
    # Worker threads of tokenizers warn after a fork, and gRPC logs what its callers already report as typed errors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = commands().main(prog_name="mpcache", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except USAGE as error:
        show_usage(error, "--json" in sys.argv)
        sys.exit(ERROR_EXIT)
    except Exception as error:
        show_error(error)
        sys.exit(exit_code(error))
    sys.exit(code)


def entry() -> NoReturn:
    """`main` as a process: it ends when `main` does. Threads that a library left behind are not waited for: tearing the
    interpreter down around a gRPC thread can abort the process after its last word."""
    code: int | str | None = 0
    try:
        main()
    except SystemExit as leave:
        code = leave.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    entry()
