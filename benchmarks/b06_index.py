"""B6: the key index: finding keys in any order, opening, what it takes on disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.index_peers import LmdbGet, Sqlite, Table, list_of_keys, make_tables
from benchmarks.measure import Contender, Series, WrongAnswerError, elapsed, measure, ratio
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale
from embedcache.keys import KEY_BYTES, Keys, sort_order, split_keys
from embedcache.store.keyindex.index import ViewIndex, segment_paths
from embedcache.store.reader import MAX_UNMERGED_KEYS

OURS = "embedcache"
SEARCH = "np.searchsorted in memory"
SORT_AND_SEARCH = "np.argsort and np.searchsorted in memory"
FETCH = "np.take: one word a key from the mapped file"
ORDERS = ("random", "sorted", "missing")

_SHARD_KEYS = 1 << 18
_MORE_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """What is looked up.

    Attributes:
        keys: All keys that are stored, ascending, (n, 16).
        places: Number of the shard · 2^32 + row of each, (n,).
        index: The index of them, its files in ``path`` and beside it.
        path: The file of its largest segment.
        queries: Order → keys, (m, 16).
    """

    keys: Keys
    places: NDArray[np.int64]
    index: ViewIndex
    path: Path
    queries: dict[str, Keys]

    @property
    def index_bytes(self) -> int:
        """Of all files of the index."""
        return sum(path.stat().st_size for path in segment_paths(self.path) if path.exists())


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    load = _make(scale, work)
    tables, skipped = make_tables(load.keys, load.places, work)
    contenders = [_ours(load, order) for order in ORDERS]
    contenders += [_peer(table, load, order) for table in tables for order in ORDERS]
    contenders += _bare_numpy(load)
    series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    sizes = {table.name: table.num_bytes() / len(load.keys) for table in tables}
    opening = _measure_opening(load, tables, scale)
    for table in tables:
        table.close()
    index_bytes, segments = load.index_bytes, [len(segment) for segment in load.index.saved]
    more_ms, more_bytes = _measure_more(load, scale.rounds)
    return Report(
        number="B6",
        title="finding keys in the index of a view",
        unit="keys/s",
        cache="warm, index and tables are in the page cache; the index's blocks have been compared"
        " with their checksums, which each process does once",
        binds="memory: a key takes three fetches that do not wait for one another (the table of"
        " first bits, the record, often the record after it); a binary search takes 23 that do",
        series=series,
        targets=[
            *_targets(series),
            *_opening_targets(opening),
            Target(what=f"adding {_MORE_KEYS:,} keys and saving", value=more_ms, unit="ms"),
            Target(what="bytes written by that", value=more_bytes / 1000, unit="kB"),
        ],
        notes=[
            f"{len(load.keys):,} random keys in {len(load.index.shards)} shards, saved as a build"
            f" saves them: {len(segments)} segments of {', '.join(f'{n:,}' for n in segments)}"
            f" keys, {index_bytes:,} bytes. {len(load.queries['random']):,} queries; LMDB takes"
            " the next quarter of them each round, SQLite the next tenth, each in the same order."
            " Places of the same queries are compared by digest.",
            "embedcache takes keys as one array and gives arrays; the others take a list of bytes,"
            " made before, and give what they give: it is not made into an array in their time.",
            "NumPy's searchsorted alone, which gives positions and compares no key, was to be the"
            " limit, but a table of first bits beats it; the limit is one fetch a key.",
            f"Bytes a key: embedcache {index_bytes / len(load.keys):.1f}, "
            + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
            + ". A key and its place are 24.",
        ],
        skipped=skipped,
    )


def _make(scale: Scale, work: Path) -> Workload:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (scale.index_keys, KEY_BYTES), dtype=np.uint8)
    places = np.empty(len(keys), np.int64)
    path = work / "index" / "view.index"
    index = ViewIndex.empty()
    for number, start in enumerate(range(0, len(keys), _SHARD_KEYS)):
        members = slice(start, start + _SHARD_KEYS)
        order = sort_order(keys[members])
        keys[members] = keys[members][order]
        places[members] = (number << 32) + np.arange(len(order))
        index = index.with_shard(f"{number:032x}", keys[members])
        if index.num_unmerged_keys >= MAX_UNMERGED_KEYS:
            index = index.save(path, tmp_folder=work)
    index = index.save(path, tmp_folder=work)
    order = sort_order(keys)
    keys, places = keys[order], places[order]
    chosen = rng.choice(len(keys), scale.index_queries, replace=False)
    missing = rng.integers(0, 256, (scale.index_queries, KEY_BYTES), dtype=np.uint8)
    queries = {"random": keys[chosen], "sorted": keys[np.sort(chosen)], "missing": missing}
    return Workload(keys, places, index, path, queries)


def _ours(load: Workload, order: str) -> Contender:
    queries = load.queries[order]
    wanted = 0 if order == "missing" else len(queries)
    numbers = np.array([int(digest, 16) for digest in load.index.shards], np.int64)

    def find(_number: int) -> float:
        shards, _ = load.index.locate(queries)
        _expect(OURS, int(np.count_nonzero(shards >= 0)), wanted)
        return len(queries)

    def inspect() -> dict[str, str]:
        shards, rows = load.index.locate(queries)
        places = np.where(shards < 0, -1, (numbers.take(shards, mode="clip") << 32) + rows)
        parts = {1, *(kind.parts for kind in (LmdbGet, Sqlite))}
        return {
            f"{order}, first of {count}": _digest(places[_part(len(queries), count, 0)])
            for count in parts
        }

    return Contender(name=f"{OURS}, {order}", role="ours", run=find, inspect=inspect)


def _peer(table: Table, load: Workload, order: str) -> Contender:
    queries = list_of_keys(load.queries[order])

    def find(number: int) -> float:
        some = queries[_part(len(queries), table.parts, number)]
        num_found = table.count(table.find(some))
        _expect(table.name, num_found, 0 if order == "missing" else len(some))
        return len(some)

    def inspect() -> dict[str, str]:
        some = queries[_part(len(queries), table.parts, 0)]
        places = table.places(some, table.find(some))
        return {f"{order}, first of {table.parts}": _digest(places)}

    return Contender(name=f"{table.name}, {order}", role="peer", run=find, inspect=inspect)


def _part(count: int, parts: int, number: int) -> slice:
    size = count // parts
    return slice(number % parts * size, (number % parts + 1) * size)


def _expect(name: str, num_found: int, wanted: int) -> None:
    if num_found != wanted:
        raise WrongAnswerError(f"{name}: found {num_found} keys of {wanted}")


def _digest(places: NDArray[np.int64]) -> str:
    return blake2b(np.ascontiguousarray(places, "<i8").data, digest_size=16).hexdigest()


def _bare_numpy(load: Workload) -> list[Contender]:
    """What NumPy alone does: positions in a sorted array, or words; no key is compared."""
    high, _ = split_keys(load.keys)
    random, _ = split_keys(load.queries["random"])
    in_order = np.sort(random)
    words = load.index.saved[0].keys.words
    rng = np.random.default_rng(1)
    somewhere = rng.integers(0, len(words), len(random))

    def search(_number: int) -> float:
        return len(np.searchsorted(high, in_order))

    def sort_and_search(_number: int) -> float:
        return len(np.searchsorted(high, random[np.argsort(random)]))

    def fetch(_number: int) -> float:
        return len(words.take(somewhere, mode="clip"))

    return [
        Contender(name=f"{SEARCH}, sorted", role="peer", run=search),
        Contender(name=f"{SORT_AND_SEARCH}, random", role="peer", run=sort_and_search),
        Contender(name=f"{FETCH}, random", role="limit", run=fetch),
    ]


def _measure_opening(load: Workload, tables: Sequence[Table], scale: Scale) -> list[Series]:
    """Seconds until the index or a table is open, and until it has answered first queries."""
    counts = dict.fromkeys((0, 1, min(4096, scale.index_queries), scale.index_queries))
    contenders = [_opening(load, count) for count in counts]
    contenders += [_reopening(table) for table in tables if isinstance(table, Sqlite)]
    contenders += [_reopening(table) for table in tables if type(table) is LmdbGet]
    return measure(contenders, rounds=scale.rounds, value=elapsed)


def _opening(load: Workload, num_queries: int) -> Contender:
    queries = load.queries["random"]

    def open_and_find(number: int) -> float:
        opened = ViewIndex.load(load.path)
        if num_queries:
            start = number * num_queries % (len(queries) - num_queries + 1)
            some = queries[start : start + num_queries]
            shards, _ = opened.locate(some)
            _expect(OURS, int(np.count_nonzero(shards >= 0)), len(some))
        return 1.0

    return Contender(name=_opening_name(num_queries), role="ours", run=open_and_find)


def _reopening(table: LmdbGet | Sqlite) -> Contender:
    def open_again(_number: int) -> float:
        table.open()
        return 1.0

    return Contender(
        name=f"opening, {table.name}",
        role="peer",
        before=lambda _number: table.close(),
        run=open_again,
    )


def _opening_name(num_queries: int) -> str:
    return "opening" + (f", then {num_queries:,} random keys" if num_queries else "")


def _opening_targets(opening: Sequence[Series]) -> list[Target]:
    return [
        Target(
            what=series.name + (" ≤ 10 ms" if series.name == _opening_name(0) else ""),
            value=1000 * series.median,
            wanted=10.0 if series.name == _opening_name(0) else None,
            at_most=True,
            unit="ms",
        )
        for series in opening
    ]


def _measure_more(load: Workload, rounds: int) -> tuple[float, float]:
    """Milliseconds and bytes of adding a small shard and saving; medians."""
    index = load.index
    milliseconds, written = [], []
    for number in range(rounds):
        rng = np.random.default_rng(1000 + number)
        keys = rng.integers(0, 256, (_MORE_KEYS, KEY_BYTES), dtype=np.uint8)
        keys = keys[sort_order(keys)]
        before = {segment.path: len(segment) for segment in index.saved}
        started = time.perf_counter()
        index = index.with_shard(f"{1 << 20 | number:032x}", keys)
        index = index.save(load.path, tmp_folder=load.path.parent)
        milliseconds.append(1000 * (time.perf_counter() - started))
        new = [each.path for each in index.saved if before.get(each.path) != len(each)]
        written.append(sum(path.stat().st_size for path in new if path is not None))
    return statistics.median(milliseconds), statistics.median(written)


def _targets(series: Sequence[Series]) -> list[Target]:
    targets = []
    for order in ORDERS:
        ours = named(series, f"{OURS}, {order}")
        for other in series:
            table, _, its_order = other.name.rpartition(", ")
            if other.role == "peer" and its_order == order:
                wanted = 3.0 if table.startswith("LMDB") else None
                sign = "≥ 3 × " if wanted else "× "
                targets.append(
                    Target(what=f"{order}: {sign}{table}", value=ratio(ours, other), wanted=wanted)
                )
    limit = named(series, f"{FETCH}, random")
    share = ratio(named(series, f"{OURS}, random"), limit)
    targets.append(Target(what="random: share of the limit", value=share, unit="%"))
    return targets
