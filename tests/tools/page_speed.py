"""Seconds a token with a cache in memory and with one in pages, in turn in one run: `python -m tests.tools.page_speed`.

Two parties and the dealer are threads of this process, with random weights and rows of a GPT-2's shape; both parties have
two sessions with equal caches, of which one may have only a share of its rows in memory. Tokens of both are computed in
turn, so that whatever else the machine does slows both down alike. The token is told with the dealer's work in it; what
pages take is told by itself, too.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from launch.local.in_process import InProcessSuite
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.sources import SharedInputs
from models.costs.cached import cache_bytes
from models.costs.program import NoInputs, StepPlan, fill, load, step
from models.decoder import Decoder
from models.shapes import _gpt2
from parties.pages.cache_memory import CacheMemory, SessionPager
from parties.pages.page_store import PageStore
from parties.wire.manifest import new_id
from protocols.registry import SuiteSpec
from protocols.suite import Suite


class Timed:
    """A pager and the seconds that it takes."""

    def __init__(self, pager: SessionPager) -> None:
        self.pager, self.seconds = pager, 0.0

    def begin(self, layers: Any) -> None:
        self.pager.begin(layers)

    def enter(self, layer: int) -> None:
        start = time.perf_counter()
        self.pager.enter(layer)
        self.seconds += time.perf_counter() - start


class Run:
    """One comparison."""

    def __init__(self, layers: int, width: int, cached: int, tokens: int) -> None:
        self.architecture = _gpt2(layers, width, width // 64, vocabulary=97, positions=cached + tokens + 1)
        self.inputs = BenchInputs(self.architecture, 1, 2)
        self.cached, self.tokens = cached, tokens
        self.whole = cache_bytes(self.architecture, cached, tokens)

    def measure(self, share: float, folder: Path, key: Path | None) -> dict[str, Any]:
        """Run it; figures of party 0."""

        def program(suite: Suite, party: int | None) -> dict[str, Any]:
            source = NoInputs() if party is None else SharedInputs(self.inputs, party)
            weights = suite.run(load(suite, self.architecture, source))
            decoder, timed, memory, store = Decoder(suite, self.architecture, weights), None, None, None
            caches = [suite.run(fill(decoder, self.cached, source))]
            if party is not None:
                store = PageStore(folder / str(party), f"party{party}", key)
                memory = CacheMemory(store, round(share * self.whole), 1 << 40)
                pager = memory.pager(new_id())
                assert pager is not None
                suite.pager = timed = Timed(pager)
            caches.append(suite.run(fill(decoder, self.cached, source)))
            if timed is not None:
                timed.seconds = 0.0
            seconds: tuple[list[float], list[float]] = ([], [])
            peak = 0
            for number in range(self.tokens):
                given = source.tokens(suite, 1, True)
                for which in (0, 1) if number % 2 else (1, 0):
                    start = time.perf_counter()
                    suite.run(step(decoder, caches[which], StepPlan(1), given, f"token {number}"))
                    seconds[which].append(time.perf_counter() - start)
                    peak = max(peak, 0 if memory is None else memory.used_bytes)
            if timed is None or memory is None or store is None:
                return {}
            found = {
                "memory": statistics.median(seconds[0]),
                "pages": statistics.median(seconds[1]),
                "paging": timed.seconds / self.tokens,
                "read": memory.counts.read_bytes / self.tokens,
                "hit_rate": memory.counts.hit_rate,
                "peak": peak,
            }
            timed.pager.close()
            store.close()
            return found

        return InProcessSuite(SuiteSpec("masked")).run(program)[0]


def main(
    layers: Annotated[int, typer.Option()] = 12,
    width: Annotated[int, typer.Option(help="A multiple of 64.")] = 384,
    cached: Annotated[int, typer.Option(help="Tokens before the first one.")] = 1024,
    tokens: Annotated[int, typer.Option()] = 8,
    share: Annotated[float, typer.Option(help="Of the cache that may lie in memory.")] = 0.25,
    encrypted: Annotated[bool, typer.Option("--encrypted")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the store lies; by default a temporary folder.")] = None,
) -> None:
    """Compare."""
    root, key, run = Path(tempfile.mkdtemp(dir=folder)), None, Run(layers, width, cached, tokens)
    try:
        if encrypted:
            key = root / "key"
            key.touch(0o600)
            key.write_text("a" * 64)
        with torch.inference_mode():
            found = run.measure(share, root, key)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"cache {run.whole / 1e6:.0f} MB, {share:.0%} of it allowed in memory, {found['peak'] / 1e6:.0f} MB there at most")
    print(f"a token: {found['memory']:.3f} s in memory, {found['pages']:.3f} s in pages ({found['read'] / 1e6:.0f} MB read)")
    print(f"speed in pages: {found['memory'] / found['pages']:.0%} of that in memory; pages take {found['paging']:.3f} s")
    print(f"hit rate {found['hit_rate']:.1%}")


if __name__ == "__main__":
    typer.run(main)
