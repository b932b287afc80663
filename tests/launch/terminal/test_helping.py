"""Pages of `--help`: at every width each option's name, default and sentence is there, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from launch.cli.main import app
from launch.terminal.helping import help_page


def walk(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    yield command, context
    for name, one in getattr(command, "commands", {}).items():
        yield from walk(one, type(context)(one, parent=context, info_name=name))


def pages(width: int) -> Iterator[tuple[Any, Any, str]]:
    command = typer.main.get_command(app)
    top = command.context_class(command, info_name="mpcache")
    for one, context in walk(command, top):
        yield one, context, help_page(one, context, width)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_nothing_is_cut(width: int) -> None:
    found = 0
    for command, context, page in pages(width):
        words = page.split()
        assert "…" not in page
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                name, sentence = record
                assert name in page, f"{context.command_path} {name}"
                assert contains(words, sentence.split()), f"{context.command_path} {name}"
        assert contains(words, (command.help or "").split()), context.command_path
        for line in page.partition("\n\n")[2].splitlines():  # usage has the width of this terminal
            assert len(line) <= width or " " not in line.strip() or line.strip().startswith("-"), line
        found += 1
    assert found > 50


def contains(words: list[str], part: list[str]) -> bool:
    """Whether `part` stands in `words` as it is."""
    size = len(part)
    return any(words[at : at + size] == part for at in range(len(words) - size + 1))


def test_commands_are_listed_with_all_of_their_first_paragraph() -> None:
    command, _, page = next(pages(80))
    words = page.split()
    listed = [one for one in command.commands.values() if not one.hidden]
    assert len(listed) > 30
    for one in listed:
        assert contains(words, [one.name, *one.help.split("\n\n")[0].split()]), one.name
    assert "bench-process" not in page
