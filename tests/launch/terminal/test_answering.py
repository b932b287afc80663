"""What is shown before the first token."""

from __future__ import annotations

from typing import Any

from launch.terminal.answering import _View
from parties.client.sampling_params import SamplingParams


class Characters:
    """A tokenizer whose streams are not used."""

    def stream(self, before: list[int]) -> Any:
        return None


def test_nobody_is_waited_for_once_something_goes_on() -> None:
    view = _View(Characters(), [], SamplingParams(4), streaming=True)  # type: ignore[arg-type]

    def shown() -> list[str]:
        return [task.description for task in view._bar.tasks]

    view.progress("waiting for party1", 0, 0)
    view.progress("waiting for dealer", 0, 0)
    assert shown() == ["waiting for party1", "waiting for dealer"]
    view.progress("model load", 0, 100)
    assert shown() == ["model load"]
    view.progress("prefill", 1, 12)
    assert shown() == ["model load", "prefill"]
    view.progress("waiting for party1", 0, 0)
    view.progress("prefill", 2, 12)
    assert shown() == ["model load", "prefill"]
    assert view._bar.tasks[1].completed == 2
