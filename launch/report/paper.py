"""The paper's tables with this system: latency and communication of one decoded token, full cache against a policy.

Zeng et al., "MPCache", NeurIPS 2025, section 5: latency 1.8 to 2.01 times and communication 3.39 to 8.37 times below the
full cache, growing with length, three parties under ABY3 with the selection done in plaintext. Here the selection runs on
shares. Rows were measured where a result holds seconds; "estimate" rows hold exact rounds and bytes, and seconds of the
network alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.predict.networks import NETWORKS
from launch.report.network_model import predict
from launch.report.rows import FULL, Row, counted, groups, pick, timed, title_of
from launch.report.tables import Table, on_network, seconds_text
from launch.terminal.console import byte_count

PROFILES = ("lan", "wan")


def paper_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table of latency and one of communication a model, in the paper's form."""
    out = []
    for (_, parties), found in groups(counted(rows)).items():
        pairs = [
            (row, base[0])
            for row in sorted(found, key=lambda r: (r.cell.suite, r.cell.policy, r.cell.prompt))
            if row.cell.policy != FULL and (base := pick(found, suite=row.cell.suite, policy=FULL, prompt=row.cell.prompt))
        ]
        if not pairs:
            continue
        title = f"{title_of(found)}, {parties} parties"
        out.append(_communication(title, pairs))
        out.extend(_latency(rows, title, pairs, profile) for profile in PROFILES)
    return out


def _communication(title: str, pairs: Sequence[tuple[Row, Row]]) -> Table:
    lines = tuple(
        (
            str(row.cell.prompt),
            row.label,
            byte_count(full.bytes_sent),
            byte_count(row.bytes_sent),
            f"{full.bytes_sent / row.bytes_sent:.2f}x",
            f"{full.rounds:.0f}",
            f"{row.rounds:.0f}",
            "estimate" if row.predicted or full.predicted else "measured",
        )
        for row, full in pairs
    )
    return Table(
        f"Communication: {title}",
        "Of one decoded token, bytes that the busiest party sends, and rounds.",
        ("length", "suite, policy", "full cache", "policy", "reduction", "rounds, full", "rounds", ""),
        lines,
    )


def _latency(rows: Sequence[Row], title: str, pairs: Sequence[tuple[Row, Row]], profile: str) -> Table:
    lines = []
    for row, full in pairs:
        ran = [timed(rows, r) for r in (full, row)]
        found = [on_network(rows, r, profile) for r in ran if r is not None]
        shaped = [seconds for seconds, measured in found if measured and seconds is not None]
        locally = [r.seconds for r in ran if r is not None and r.seconds is not None]
        if len(shaped) == 2:
            (theirs, mine), kind = shaped, "measured"
        else:
            kind = "measured on localhost + network" if len(locally) == 2 else "estimate: network alone"
            theirs, mine = (
                predict(NETWORKS[profile], r.rounds, r.bytes_sent, local)
                for r, local in zip((full, row), locally if len(locally) == 2 else (0.0, 0.0), strict=True)
            )
        lines.append(
            (str(row.cell.prompt), row.label, seconds_text(theirs), seconds_text(mine), f"{theirs / mine:.2f}x", kind)
        )
    network = NETWORKS[profile]
    return Table(
        f"Latency, {profile}: {title}",
        f"Seconds of one decoded token; {network.round_trip * 1e3:g} ms round trip, {network.bandwidth / 1e6:g} Mbit/s.",
        ("length", "suite, policy", "full cache", "policy", "reduction", ""),
        tuple(lines),
    )
