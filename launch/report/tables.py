"""Tables of a report as header and rows of text, and the ratios and exponents that they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch.measure.bench.cell import LOCALHOST
from launch.predict.networks import NETWORKS
from launch.report.network_model import comparisons, predicted_seconds
from launch.report.rows import FULL, Row, by_label, counted, groups, pick, prompts, timed, title_of, tokens
from launch.terminal.console import byte_count, digits

NOTHING = ("-", "")
COLUMNS = ("suite, policy", "rounds", "sent", "dealt", "seconds", "before", "dealer", "memory", "")
COLUMNS_ARE = (
    "Bytes that the busiest party sends; dealt bytes of the party that gets most; median seconds of the slowest party: "
    "online, and before it (what the tape alone needs); the dealer's; a party's peak memory."
)


@dataclass(frozen=True)
class Table:
    """title, a sentence on what the numbers are, header, rows."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def shown(self) -> tuple[tuple[str, ...], ...]:
        """Return header and rows without the columns in which nothing stands.

        >>> Table("tokens", "", ("policy", "rounds", "seconds"), (("full", "75", "-"),)).shown()
        (('policy', 'rounds'), ('full', '75'))
        """
        kept = [i for i in range(len(self.header)) if not self.rows or any(line[i] not in NOTHING for line in self.rows)]
        return tuple(tuple(line[i] for i in kept) for line in (self.header, *self.rows))

    def markdown(self) -> str:
        """Return it in GitHub's table syntax, without the title.

        >>> print(Table("tokens", "one decoded token", ("policy", "rounds"), (("full", "75"),)).markdown())
        | policy | rounds |
        | --- | --- |
        | full | 75 |
        """
        header, *rows = self.shown()
        lines = [header, tuple("---" for _ in header), *rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def seconds_text(value: float | None) -> str:
    """Return three digits; "-" where nothing was measured.

    >>> seconds_text(0.10583), seconds_text(None)
    ('0.106', '-')
    """
    return "-" if value is None else digits(value)


def how(row: Row) -> str:
    """Say whether it was measured or predicted, and of how many tokens it is the mean."""
    of = f", mean of {row.cell.new_tokens}" if row.cell.new_tokens > 1 else ""
    return f"{'predicted' if row.predicted else 'measured'}{of}"


def token_tables(rows: Sequence[Row]) -> list[Table]:
    """Tabulate one decoded token: a table a model, a row a suite, policy and length."""
    out = []
    for (_, parties), found in groups(tokens(rows)).items():
        ordered = sorted(found, key=lambda r: (r.cell.prompt, r.cell.suite, r.cell.policy))
        out.append(
            Table(
                f"One decoded token: {title_of(found)}, {parties} parties",
                COLUMNS_ARE,
                ("cached", *COLUMNS),
                tuple((str(row.cell.prompt), *cost_cells(row)) for row in ordered),
            )
        )
    return out


def prompt_tables(rows: Sequence[Row]) -> list[Table]:
    """Tabulate one prompt up to its first token: a table a model, a row a suite, policy and length."""
    return [
        Table(
            f"One prompt: {title_of(found)}, {parties} parties",
            f"Up to the first token. {COLUMNS_ARE}",
            ("prompt", *COLUMNS),
            tuple((str(row.cell.prompt), *cost_cells(row)) for row in found),
        )
        for (_, parties), found in groups(prompts(rows)).items()
    ]


def cost_cells(row: Row) -> tuple[str, ...]:
    """Return what `COLUMNS` name of a token or a prompt; "-" where nothing was run."""
    memory = row.measured.get("peak_memory_bytes", {}).get("party")
    return (
        row.label,
        f"{row.rounds:.0f}",
        byte_count(row.bytes_sent),
        byte_count(row.offline_bytes),
        seconds_text(row.seconds),
        seconds_text(row.measured.get("prepare_seconds", {}).get("median")),
        seconds_text(row.measured.get("dealer_seconds", {}).get("median")),
        "-" if memory is None else byte_count(memory),
        how(row),
    )


@dataclass(frozen=True)
class Ratio:
    """Full cache over policy, in the same suite, model and length. latency: by network, predicted but for localhost."""

    row: Row
    bytes_ratio: float
    rounds_ratio: float
    seconds_ratio: float | None
    networks: dict[str, float]


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Return every policy that has a full cache of the same suite, model and length beside it."""
    out = []
    for found in groups(counted(rows)).values():
        for row in sorted(found, key=lambda r: (r.cell.suite, r.cell.policy, r.cell.prompt)):
            base = [r for r in pick(found, suite=row.cell.suite, policy=FULL, prompt=row.cell.prompt) if r is not row]
            if row.cell.policy == FULL or not base:
                continue
            full = base[0]
            mine, theirs = timed(rows, row), timed(rows, full)
            networks = {}
            for name, network in NETWORKS.items():
                with_policy, without = predicted_seconds(row, network, mine), predicted_seconds(full, network, theirs)
                if with_policy is not None and without is not None:
                    networks[name] = without / with_policy
            out.append(
                Ratio(
                    row,
                    full.bytes_sent / row.bytes_sent,
                    full.rounds / row.rounds,
                    theirs.seconds / mine.seconds if mine and theirs and mine.seconds and theirs.seconds else None,
                    networks,
                )
            )
    return out


def ratio_table(rows: Sequence[Row]) -> Table | None:
    """Tabulate in the paper's form how many times less latency and communication than the full cache, per length."""
    found = ratios(rows)
    if not found:
        return None
    names = list(NETWORKS)
    lines = tuple(
        (
            r.row.title,
            r.row.label,
            str(r.row.cell.prompt),
            f"{r.bytes_ratio:.2f}x",
            f"{r.rounds_ratio:.2f}x",
            "-" if r.seconds_ratio is None else f"{r.seconds_ratio:.2f}x",
            *("-" if name not in r.networks else f"{r.networks[name]:.2f}x" for name in names),
            how(r.row),
        )
        for r in found
    )
    return Table(
        "Against the full cache",
        "Full cache divided by policy, same suite, model and length. Latency on localhost is measured; on the others it "
        "follows from measured seconds and counted rounds and bytes.",
        ("model", "suite, policy", "cached", "bytes", "rounds", "localhost", *names, ""),
        lines,
    )


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Return b of y = a x^b by least squares on logarithms; None for fewer than two lengths.

    >>> round(exponent([(1024, 3.0), (2048, 12.0)]), 6)
    2.0
    """
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (sum(v[i] for v in logs) / len(logs) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def exponents(rows: Sequence[Row], shortest: int = 1024) -> list[tuple[str, str, int, int, float]]:
    """Return (model, suite and policy, first length, last length, fitted exponent of a token's bytes in length)."""
    out = []
    for (model, _), found in groups(counted(rows)).items():
        for label, line in by_label(found).items():
            points = [(float(r.cell.prompt), r.bytes_sent) for r in line if r.cell.prompt >= shortest]
            fitted = exponent(points)
            if fitted is not None:
                out.append((model, label, int(points[0][0]), int(points[-1][0]), fitted))
    return out


def exponent_table(rows: Sequence[Row]) -> Table | None:
    """Tabulate how a token's bytes grow with the prompt's length."""
    found = exponents(rows)
    if not found:
        return None
    return Table(
        "Growth with length",
        "Exponent b of bytes = a x length^b, fitted to the lengths named (1 is linear).",
        ("model", "suite, policy", "lengths", "exponent"),
        tuple((model, label, f"{first} to {last}", f"{b:.2f}") for model, label, first, last, b in found),
    )


def network_table(rows: Sequence[Row]) -> Table | None:
    """Tabulate shaped runs beside the model's prediction."""
    found = comparisons(rows)
    if not found:
        return None
    lines = tuple(
        (
            c.shaped.cell.network,
            c.shaped.title,
            c.shaped.label,
            str(c.shaped.cell.prompt),
            seconds_text(c.shaped.seconds),
            seconds_text(c.predicted),
            f"{100 * c.error:+.0f} %",
        )
        for c in found
    )
    return Table(
        "Networks: measured and predicted",
        "Seconds of one token between network namespaces with delay and bandwidth, and predicted as seconds on localhost + "
        "rounds x (half a round trip + 0.3 ms to wake up) + bytes / bandwidth.",
        ("network", "model", "suite, policy", "cached", "measured", "predicted", "error"),
        lines,
    )


def peer_table(rows: Sequence[Row]) -> Table | None:
    """Tabulate other systems and this one at a decoded token: same shape, same machine, same run; each divided by this
    one's with fewest bytes."""
    own = [(row, ran) for row in counted(rows) if (ran := timed(rows, row)) is not None]
    return _peers(rows, "peer", own, "One decoded token", "cached")


def prompt_peer_table(rows: Sequence[Row]) -> Table | None:
    """Tabulate other systems and this one at a prompt up to its first token, as `peer_table` does."""
    own = [(row, row) for row in prompts(rows) if row.seconds is not None]
    return _peers(rows, "peer-prompt", own, "One prompt up to its first token", "prompt")


def _peers(rows: Sequence[Row], measure: str, own: Sequence[tuple[Row, Row]], what: str, first: str) -> Table | None:
    """own: this system's rows, each with the row of its seconds."""
    lines = []
    for peer in (r for r in rows if r.cell.measure == measure and r.cell.network == LOCALHOST):
        mine = [pair for pair in own if pair[0].model == peer.model and pair[0].cell.prompt == peer.cell.prompt]
        pairs = [(peer, peer), *sorted(mine, key=lambda pair: -pair[0].bytes_sent)]
        lines += [_beside(rows, *pair, *pairs[-1]) for pair in pairs]
    if not lines:
        return None
    return Table(
        f"Beside other systems: {what[0].lower()}{what[1:]}",
        f"{what}, same shape, same machine, same run; in brackets: divided by the last row. Sent: by the party that sends "
        "most. For SPU the rounds are the send actions that it logs, of the party with the most.",
        (first, "system", "parties", "rounds", "sent", "dealt before", "seconds", "seconds, wan"),
        tuple(lines),
    )


def _beside(rows: Sequence[Row], row: Row, ran: Row, base: Row, base_ran: Row) -> tuple[str, ...]:
    def times(mine: float | None, its: float | None) -> str:
        if row is base or not mine or not its:
            return ""
        return f" ({mine / its:.0f}x)" if mine >= 10 * its else f" ({mine / its:.1f}x)"

    (wan, shaped), (its_wan, _) = (on_network(rows, r, "wan") for r in (ran, base_ran))
    return (
        str(row.cell.prompt),
        f"SPU, {row.cell.suite}" if row.cell.measure.startswith("peer") else row.label,
        str(row.cell.parties),
        f"{row.rounds:.0f}{times(row.rounds, base.rounds)}",
        f"{byte_count(row.bytes_sent)}{times(row.bytes_sent, base.bytes_sent)}",
        byte_count(row.offline_bytes),
        f"{seconds_text(ran.seconds)}{times(ran.seconds, base_ran.seconds)}",
        f"{seconds_text(wan)}{times(wan, its_wan)}{'' if shaped or wan is None else ', predicted'}",
    )


def on_network(rows: Sequence[Row], row: Row, network: str) -> tuple[float | None, bool]:
    """Return the seconds of a row's cell on a network, and whether they were measured there."""
    wanted = row.cell.model_copy(update={"network": network}).key
    shaped = next((r.seconds for r in rows if r.cell.key == wanted and r.seconds is not None), None)
    return (predicted_seconds(row, NETWORKS[network]), False) if shaped is None else (shaped, True)


def where_table(rows: Sequence[Row]) -> Table:
    """Tabulate what was measured where: hardware, versions, revision."""
    found: dict[tuple[str, ...], int] = {}
    for row in rows:
        e = row.environment
        hardware, versions, revision = e["hardware"], e["versions"], e["revision"]
        commit = (revision["commit"] or "unknown")[:10] + (" with changes" if revision["changed"] else "")
        key = (
            f"{hardware['processor']}, {hardware['cores']} cores, {byte_count(hardware['memory_bytes'])}",
            ", ".join(hardware["cuda_devices"]) or "none",
            f"Python {versions['python']}, torch {versions['torch']}, grpcio {versions['grpcio']}",
            commit,
            e["time"][:10],
        )
        found[key] = found.get(key, 0) + 1
    return Table(
        "Where",
        "Parties and dealer are processes of one machine, one thread each, over gRPC with mutual TLS.",
        ("machine", "GPU", "versions", "revision", "day", "results"),
        tuple((*key, str(count)) for key, count in found.items()),
    )
