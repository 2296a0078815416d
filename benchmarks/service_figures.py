"""B12's figures: what was to be reached, and the tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Series, ratio
from benchmarks.report import Table, Target, named
from benchmarks.service_bench import CONSTANT, SOCKET, Bench, full_name
from benchmarks.service_cells import FEATURES_JSON, FEATURES_NPZ, PEER, Cell, Interface

WANTED_SHARE = 0.7
_LIMITS = (CONSTANT, SOCKET)


def latency_targets(bench: Bench, single: Sequence[Cell]) -> list[Target]:
    """Of one text on one connection."""
    targets = []
    for cell in _of_service(single):
        name = full_name(cell, 1)
        for percent in (50, 99):
            limit = bench.percentile(f"{name}: {CONSTANT}", percent)
            targets.append(
                Target(
                    what=f"{cell.name}: p{percent} ≤ 2 × that of the constant",
                    value=bench.percentile(name, percent) / limit,
                    wanted=2.0,
                    at_most=True,
                )
            )
    return targets


def rate_targets(
    series: Sequence[Series], single: Sequence[Cell], connections: Sequence[int]
) -> list[Target]:
    """Of one text on several connections."""
    return [
        Target(
            what=f"{full_name(cell, count)}: ≥ ½ of the constant's requests/s",
            value=_share(series, cell, count, CONSTANT),
            wanted=0.5,
            unit="%",
        )
        for count in connections
        for cell in _of_service(single)
    ]


def transfer_targets(
    series: Sequence[Series], large: Sequence[Cell], connections: int
) -> list[Target]:
    """Of a hundred texts; and how much of the bare socket the server itself reaches."""
    targets = []
    for cell in large:
        name = full_name(cell, connections)
        targets += [
            Target(
                what=f"{name}: ≥ 70 % of the {limit}'s MB/s",
                value=_share(series, cell, connections, limit),
                wanted=WANTED_SHARE,
                unit="%",
            )
            for limit in _LIMITS
        ]
        constant, socket = (named(series, f"{name}: {limit}") for limit in _LIMITS)
        what = f"{name}: the constant's own share of the bare socket's MB/s"
        targets.append(Target(what=what, value=ratio(constant, socket), unit="%"))
    return targets


def peer_targets(
    bench: Bench, series: Sequence[Series], cells: Sequence[Cell], connections: Sequence[int]
) -> list[Target]:
    """What one would write oneself, beside the service; no bound was set."""
    targets = []
    for interface in (FEATURES_JSON, FEATURES_NPZ):
        found = _of_interface(cells, interface)
        peers = _of_interface(cells, PEER)
        for count, cell in found.items():
            ours, theirs = (
                bench.percentile(full_name(each, 1), 50) for each in (cell, peers[count])
            )
            plural = "s" if count > 1 else ""
            what = f"{count} text{plural}: p50 of {PEER.name} ÷ that of {interface.name}"
            targets.append(Target(what=what, value=theirs / ours))
        for number in connections:
            ours_rate, peer_rate = (
                named(series, full_name(each, number)) for each in (found[1], peers[1])
            )
            what = f"1 text, {number} connections: {interface.name} ÷ {PEER.name}, requests/s"
            targets.append(Target(what=what, value=ratio(ours_rate, peer_rate)))
    return targets


def latency_table(bench: Bench, cells: Sequence[Cell]) -> Table:
    """Of every kind of request, beside the constant's."""
    rows: list[tuple[str | float, ...]] = []
    for cell in cells:
        name = full_name(cell, 1)
        ours = [bench.percentile(name, percent) for percent in (50, 99)]
        if cell.interface is PEER:
            rows.append((cell.name, *ours, "–", "–", "–", "–"))
            continue
        limits = [bench.percentile(f"{name}: {CONSTANT}", percent) for percent in (50, 99)]
        shares = [mine / limit for mine, limit in zip(ours, limits, strict=True)]
        rows.append((cell.name, *ours, *limits, *shares))
    return Table(
        title="Latency on one connection, in ms, over all requests of all rounds",
        header=("", "p50", "p99", "constant: p50", "p99", "÷ constant: p50", "p99"),
        rows=tuple(rows),
    )


def transfer_table(
    bench: Bench, series: Sequence[Series], large: Sequence[Cell], connections: Sequence[int]
) -> Table:
    """MB/s of answers' bodies."""
    rows: list[tuple[str | float, ...]] = []
    for count in connections:
        for cell in large:
            name = full_name(cell, count)
            kb = sum(cell.answer_bytes) / len(cell.answer_bytes) / 1000
            limits = [bench.megabytes_per_s(f"{name}: {limit}") for limit in _LIMITS]
            shares = [f"{100 * _share(series, cell, count, limit):.0f} %" for limit in _LIMITS]
            rows.append((name, kb, bench.megabytes_per_s(name), *limits, *shares))
    return Table(
        title="What a hundred texts in binary carry, MB/s of answers' bodies",
        header=(
            *("", "kB an answer", "MB/s", CONSTANT, SOCKET),
            *(f"share of the {limit}" for limit in _LIMITS),
        ),
        rows=tuple(rows),
    )


def texts_table(series: Sequence[Series]) -> Table:
    """Of streams and misses, which are counted in texts."""
    return Table(
        title="Streams and misses, texts/s",
        header=("", "median", "quartiles"),
        rows=tuple(
            (each.name, each.median, " – ".join(f"{bound:,.0f}" for bound in each.quartiles))
            for each in series
        ),
    )


def _of_service(cells: Sequence[Cell]) -> list[Cell]:
    """Without those of the peer."""
    return [cell for cell in cells if cell.interface is not PEER]


def _share(series: Sequence[Series], cell: Cell, connections: int, limit: str) -> float:
    """Ours ÷ the limit; requests of both are of the same size, so that MB/s are as requests/s."""
    name = full_name(cell, connections)
    return ratio(named(series, name), named(series, f"{name}: {limit}"))


def _of_interface(cells: Sequence[Cell], interface: Interface) -> dict[int, Cell]:
    """By the number of texts."""
    return {cell.num_texts: cell for cell in cells if cell.interface is interface}
