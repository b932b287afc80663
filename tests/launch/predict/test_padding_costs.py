"""What docs/gateway.md says that padding costs is what estimates count."""

from __future__ import annotations

import re
from pathlib import Path

from models.costs.estimation import Estimate, estimate
from models.costs.tracing import Setting
from models.shapes import SHAPES

PAGE = Path(__file__).parents[3] / "docs" / "gateway.md"
TEXT = (
    r"of GPT-2's shape, (?P<short>\d+) tokens in a bucket of (?P<bucket>\d+) send (?P<padded>\d+) MB in place of "
    r"(?P<alone>\d+), .* adds a twentieth: (?P<more>\d+) of those MB and (?P<rounds>\d+) rounds, and for each token a round "
    r"and (?P<dealt>[\d.]+) MB dealt, a sixth"
)


def test_the_page_names_the_counted_costs() -> None:
    found = re.search(TEXT, " ".join(PAGE.read_text(encoding="utf-8").split()))
    assert found is not None
    said = {name: float(value) for name, value in found.groupdict().items()}

    def costs(tokens: float, padded: bool = False) -> Estimate:
        return estimate(SHAPES["gpt2"], Setting("masked", padded=padded), int(tokens), 2)

    short, plain, padded = costs(said["short"]), costs(said["bucket"]), costs(said["bucket"], padded=True)

    def megabytes(one: Estimate) -> float:
        return round(one.first.total("bytes_sent") / 1e6)

    assert (megabytes(padded), megabytes(short)) == (said["padded"], said["alone"])
    more = padded.first.total("bytes_sent") - plain.first.total("bytes_sent")
    assert round(more / 1e6) == said["more"]
    assert padded.first.total("rounds") - plain.first.total("rounds") == said["rounds"]
    assert padded.further.total("rounds") - plain.further.total("rounds") == 1
    dealt = [one.further.total("offline_bytes") for one in (plain, padded)]
    assert round((dealt[1] - dealt[0]) / 1e6, 1) == said["dealt"]
    assert 1 / 7 < dealt[1] / dealt[0] - 1 < 1 / 5
