"""Hit rates of the rule by which cached rows leave memory, beside others': `python -m tests.tools.page_schedules`.

Each schedule is what `parties.pages.cache_memory` notes of sessions: which layer each of them needs, in order, how large its
layers are by then, and when it waits for its client. They are made here as sessions make them: N layers in turn for every
token, sessions side by side that begin and end at different times, and clients who answer late. A rate counts uses of a
layer whose rows were there already; the first one is not counted. `--recorded FILE` replays a schedule of a real run, lines
of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from parties.pages.replacement import Entered, Schedule, distinct, replay

RULES = ("belady", "ours", "lru")
ROW = 24 * 1024  # bytes of a token in a layer of GPT-2


def session(name: str, layers: int, prompt: int, tokens: int, pause: int = 0) -> Iterator[Entered]:
    """One session; with `pause` its client is waited for after every `pause` tokens."""
    sizes = [0] * layers
    for token in range(tokens):
        for layer in range(layers):
            yield Entered(name, layer, tuple(sizes), last=token + 1 == tokens)
            sizes[layer] = ROW * (prompt + token)
        if pause and token % pause == pause - 1:
            yield Entered(name, layers - 1, tuple(sizes), waits=True)
    yield Entered(name, layers - 1, ())


def beside(sessions: list[tuple[int, Iterator[Entered]]], patience: int = 0) -> Schedule:
    """Sessions that begin at a step each and take turns; one that waits for its client does so for `patience` steps."""
    found: list[Entered] = []
    ready = {number: start for number, (start, _) in enumerate(sessions)}
    step = 0
    while ready:
        for number in [number for number, when in ready.items() if when <= step]:
            line = next(sessions[number][1], None)
            if line is None:
                del ready[number]
                continue
            found.append(line)
            ready[number] = step + (patience if line.waits else 1)
        step += 1
    return found


def after_every_token(tokens: int) -> Schedule:
    """Four sessions that wait for their clients after each token."""
    return beside([(30 * n, session(f"s{n}", 12, 256, tokens, pause=1)) for n in range(4)], patience=12)


def schedules() -> dict[str, Schedule]:
    """Schedules by name."""
    return {
        "one session, 12 layers": beside([(0, session("a", 12, 512, 24))]),
        "one session, 48 layers": beside([(0, session("a", 48, 512, 12))]),
        "4 sessions beside each other": beside([(40 * n, session(f"s{n}", 12, 256 + 64 * n, 16)) for n in range(4)]),
        "8 that come and go": beside([(90 * n, session(f"s{n}", 12, 128 * (1 + n % 3), 12)) for n in range(8)]),
        "4 whose clients answer late": beside(
            [(30 * n, session(f"s{n}", 12, 256, 16, pause=2 + n)) for n in range(4)], patience=60
        ),
        "4 that wait after every token": after_every_token(24),
        "the same, short answers": after_every_token(16),
    }


def read(path: Path) -> Schedule:
    """A recorded schedule."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Entered(**{**line, "sizes": tuple(line["sizes"])}) for line in lines]


def write(path: Path, schedule: Schedule) -> None:
    """Record a schedule."""
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in schedule), encoding="utf-8")


def main(
    recorded: Annotated[Path | None, typer.Option(help="Replay this schedule instead.")] = None,
    shares: Annotated[
        str, typer.Option(help="Memory as shares of all that is cached at a time, with commas.")
    ] = "0.25,0.5,0.75",
) -> None:
    """Replay schedules by all rules."""
    found = schedules() if recorded is None else {recorded.name: read(recorded)}
    print(f"{'schedule':32} {'memory':>6}  " + "  ".join(f"{rule:>7}" for rule in RULES))
    worst = 0.0
    for name, schedule in found.items():
        for share in map(float, shares.split(",")):
            rates = {rule: replay(schedule, round(share * distinct(schedule)), rule).hit_rate for rule in RULES}
            worst = max(worst, rates["belady"] - rates["ours"])
            print(f"{name:32} {share:6.0%}  " + "  ".join(f"{rates[rule]:7.1%}" for rule in RULES))
    print(f"at most {100 * worst:.1f} points behind Belady's")


if __name__ == "__main__":
    typer.run(main)
