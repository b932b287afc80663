"""The pages of `--help`: names of options whole, words whole, at any width of the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from launch.terminal.console import write
from mpc.errors import ConfigurationError

Command = TypeVar("Command", bound=Callable[..., Any])

SENTENCE = 32  # column in which sentences begin at the latest, where there is room for them beside the names
ROOM = 72  # columns of a terminal that has it
INDENT = 2


class HelpCommand(TyperCommand):
    """A command whose help cuts nothing off, and whose wrong values are errors that name option and value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Raises as `with_values_checked` does."""
        return with_values_checked(self, ctx, partial(super().parse_args, ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page: here, and not by the formatter, so that a reader who leaves (`| head`) ends it quietly."""
        write(help_page(self, ctx, formatter.width))

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole first paragraph, whatever the limit."""
        return first_paragraph(self.help)


class HelpGroup(TyperGroup):
    """A command of commands whose help cuts nothing off, and whose wrong values are errors, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Raises as `with_values_checked` does."""
        return with_values_checked(self, ctx, partial(super().parse_args, ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page, as a command does."""
        write(help_page(self, ctx, formatter.width))

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole first paragraph, whatever the limit."""
        return first_paragraph(self.help)


class Commands(typer.Typer):
    """Commands with these pages of help, and wrong usage told in plain lines, which nothing cuts; else `typer.Typer`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=HelpGroup, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        """Register a command."""
        return super().command(name, **{"cls": HelpCommand, **options})


def with_values_checked(command: TyperCommand | TyperGroup, ctx: Any, read: Callable[[], list[str]]) -> list[str]:
    """Return what `read` does, which fills the context's parameters. Raises `ConfigurationError` naming option and value for
    one out of range, and for a number that is none."""
    remedy = f"; see {ctx.command_path} --help"
    try:
        rest = read()
    except typer.BadParameter as error:
        from pydantic import ValidationError

        if error.param is None or not isinstance(error.__cause__, ValidationError):
            raise
        first = error.__cause__.errors()[0]
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ConfigurationError(f"{error.param.opts[0]} {first['input']}: {message}{remedy}") from None
    for parameter in command.params:
        value = ctx.params.get(parameter.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{parameter.opts[0]} {value}: give a finite number{remedy}")
    return rest


def help_page(command: TyperCommand | TyperGroup, ctx: Any, width: int) -> str:
    """Return a command's page in lines of at most `width` columns, but for longer words: usage, what it does, arguments and
    options, and the first paragraph of every command in it."""
    lines = [f"{command.get_usage(ctx)}\n"]
    for paragraph in (command.help or "").strip().split("\n\n"):
        lines.append(_filled(paragraph, width, INDENT) + "\n")
    records = [(parameter, parameter.get_help_record(ctx)) for parameter in command.get_params(ctx)]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        found = [record for parameter, record in records if record and parameter.param_type_name == kind]
        if found:
            lines.append(f"{title}:\n" + entries(found, width))
    if isinstance(command, TyperGroup):
        inner = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        listed = [(name, one.get_short_help_str()) for name, one in inner if one is not None and not one.hidden]
        lines.append("Commands:\n" + entries(listed, width))
    return "\n".join(lines)


def entries(records: Iterable[tuple[str, str]], width: int) -> str:
    """Return names with their sentences: beside each other where there is room, else below each other.

    >>> print(entries([("--insecure-trust-authority", "Take any key."), ("--name <str>", "")], 40), end="")
      --insecure-trust-authority
          Take any key.
      --name <str>
    """
    listed = list(records)
    column = min(SENTENCE, max((len(name) for name, _ in listed), default=0) + 2 * INDENT) if width >= ROOM else 3 * INDENT
    lines = []
    for name, text in listed:
        beside, filled = f"{' ' * INDENT}{name}", _filled(text, width, column)
        if width < ROOM or len(beside) > column - INDENT:
            lines += [beside, *([filled] if text else [])]
        else:
            lines.append((beside.ljust(column) + filled[column:]).rstrip())
    return "".join(f"{line}\n" for line in lines)


def first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a help's text on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _filled(text: str, width: int, indent: int) -> str:
    """Return a paragraph in lines; no word is cut, so a word that is longer than a line is a line."""
    space = " " * indent
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )
