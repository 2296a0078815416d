"""B5: building again, every text a hit, texts/s; TensorFlow is never loaded."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b
from importlib import import_module
from pathlib import Path

import embedcache
from benchmarks.child import run_child
from benchmarks.corpora import write_texts
from benchmarks.machine import installed_version
from benchmarks.measure import Contender, Series, WrongAnswerError, measure, ratio
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale
from embedcache.keys import KEY_BYTES, keys_of_utf8

OURS = "embedcache.build, all hits"
LIMIT = "BLAKE2b + reading the file"
BATCH_TEXTS = 4096


class KeyTable(ABC):
    """A table key → 8 bytes: a peer of the index."""

    name = ""

    def __init__(self, keys: Sequence[bytes], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = dict(zip(keys, range(len(keys)), strict=True))
        self.write([(key, rows[key]) for key in sorted(rows)], folder)

    @abstractmethod
    def write(self, entries: Sequence[tuple[bytes, int]], folder: Path) -> None:
        """Write the table and open it."""

    @abstractmethod
    def count_hits(self, keys: Sequence[bytes]) -> int:
        """How many keys are there."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class LmdbGet(KeyTable):
    """One ``get`` a key."""

    name = "LMDB get"

    def write(self, entries: Sequence[tuple[bytes, int]], folder: Path) -> None:
        import lmdb

        size = 256 * len(entries) + (16 << 20)
        self.environment = lmdb.open(str(folder / "lmdb"), map_size=size)
        with self.environment.begin(write=True) as transaction:
            for key, row in entries:
                transaction.put(key, row.to_bytes(8, "little"), append=True)

    def count_hits(self, keys: Sequence[bytes]) -> int:
        # Several times as fast as with ``buffers=True``, for values as short as these.
        with self.environment.begin() as transaction:
            get = transaction.get
            return sum(get(key) is not None for key in keys)

    def close(self) -> None:
        self.environment.close()


class LmdbGetMulti(LmdbGet):
    """All keys of a batch in one call."""

    name = "LMDB getmulti"

    def count_hits(self, keys: Sequence[bytes]) -> int:
        with self.environment.begin() as transaction:
            return len(transaction.cursor().getmulti(keys))


class SqliteGet(KeyTable):
    """One ``SELECT`` a key, prepared once."""

    name = "SQLite get"

    def write(self, entries: Sequence[tuple[bytes, int]], folder: Path) -> None:
        self.connection = sqlite3.connect(folder / "keys.sqlite")
        self.connection.execute(
            "CREATE TABLE features (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID"
        )
        self.connection.executemany("INSERT INTO features VALUES (?, ?)", entries)
        self.connection.commit()

    def count_hits(self, keys: Sequence[bytes]) -> int:
        execute = self.connection.execute
        query = "SELECT place FROM features WHERE key = ?"
        return sum(execute(query, (key,)).fetchone() is not None for key in keys)

    def close(self) -> None:
        self.connection.close()


class ChangedMap:
    """Hugging Face ``datasets.map`` over a corpus to which one line was added.

    Its cache is found by a fingerprint of the whole corpus, so that every row is a miss then.
    Here the mapped function computes nothing: what is timed is what is left of a build
    without its module.
    """

    name = "datasets.map, one line added, computing nothing"

    def __init__(self, corpus: Path, folder: Path) -> None:
        self._lines = corpus.read_bytes()
        self._folder = folder

    def build(self, number: int) -> int:
        """Read the corpus and map it; how many rows that makes, the added one left out."""
        datasets = import_module("datasets")

        datasets.disable_progress_bars()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        path = self._folder / f"{number}.txt"
        path.write_bytes(self._lines + b"one more line\n")
        cache = str(self._folder / "cache")
        rows = datasets.Dataset.from_text(str(path), cache_dir=cache)
        mapped = rows.map(_compute_nothing, batched=True, batch_size=BATCH_TEXTS)
        return len(mapped) - 1


def _compute_nothing(batch: dict[str, list[str]]) -> dict[str, list[int]]:
    return {"features": [0] * len(batch["text"])}


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    corpus = write_texts(work / "corpus.txt", scale.rebuild_texts, mean_words=6)
    built = run_child("build", work / "store", corpus)
    num_texts = built["texts"]
    tables, skipped = _make_tables(corpus, work)
    contenders = [_ours(work / "store", corpus, num_texts)]
    contenders += [
        Contender(name=table.name, role="peer", run=partial(_look_up_all, table, corpus, num_texts))
        for table in tables
    ]
    if installed_version("datasets") is None:
        skipped.append("datasets.map: the package datasets is not installed")
    else:
        mapped = ChangedMap(corpus, work / "datasets")
        contenders.append(Contender(name=mapped.name, role="peer", run=mapped.build))
    limit = partial(_read_and_hash, corpus)
    contenders.append(Contender(name=LIMIT, role="limit", run=limit))
    series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    for opened in tables:
        opened.close()
    return Report(
        number="B5",
        title="building again, every text a hit",
        unit="texts/s",
        cache="warm, corpus, index and tables are in the page cache",
        binds="hashing and reading, then the search in the index; what `build` does beyond the"
        " look-up (the corpus's digest and UTF-8 check, the dataset's files, each forced to the"
        " device) is in its time",
        series=series,
        targets=_targets(series),
        notes=[
            f"{num_texts:,} generated texts of 6 words on average, {corpus.stat().st_size:,} bytes,"
            f" {built['unique']:,} distinct, in {built['shards']} shards. TensorFlow is not loaded"
            " (checked). The store is opened anew each time; the peers' tables stay open.",
            "The tables read and hash the same file by the same code as the limit, and only count"
            " the keys they find. `datasets.map` writes the corpus to a file, reads it into Arrow"
            " and maps it to a column of zeros.",
        ],
        skipped=skipped,
    )


def _make_tables(corpus: Path, work: Path) -> tuple[list[KeyTable], list[str]]:
    """The peers, with the corpus's keys in them; and those that are left out."""
    keys = [key for batch in _batches(corpus) for key in _keys(batch)]
    kinds: tuple[type[KeyTable], ...] = (LmdbGet, LmdbGetMulti, SqliteGet)
    skipped = []
    if installed_version("lmdb") is None:
        kinds = (SqliteGet,)
        skipped = ["LMDB: the package lmdb is not installed"]
    return [kind(keys, work / kind.__name__) for kind in kinds], skipped


def _ours(path: Path, corpus: Path, num_texts: int) -> Contender:
    was_loaded = "tensorflow" in sys.modules  # by another benchmark, among the tests

    def build(_number: int) -> int:
        with embedcache.open_store(path, create=False) as store:
            report = embedcache.build(store, corpus, dataset="b5")
        if report.texts != num_texts or report.hits != report.unique or report.misses:
            raise WrongAnswerError(f"not a build of hits: {report}")
        if "tensorflow" in sys.modules and not was_loaded:
            raise WrongAnswerError("a build of hits has loaded TensorFlow")
        return report.texts

    return Contender(name=OURS, role="ours", run=build)


def _look_up_all(table: KeyTable, corpus: Path, num_texts: int, _number: int) -> int:
    num_hits = sum(table.count_hits(_keys(batch)) for batch in _batches(corpus))
    if num_hits != num_texts:
        raise WrongAnswerError(f"{table.name}: {num_hits} hits of {num_texts}")
    return num_texts


def _read_and_hash(corpus: Path, _number: int) -> int:
    return sum(len(keys_of_utf8(batch)) for batch in _batches(corpus))


def _batches(corpus: Path) -> Iterator[list[bytes]]:
    lines = corpus.read_bytes().splitlines()
    for start in range(0, len(lines), BATCH_TEXTS):
        yield lines[start : start + BATCH_TEXTS]


def _keys(texts: list[bytes]) -> list[bytes]:
    """What the peers look up: the same keys, as they take them."""
    return [blake2b(text, digest_size=KEY_BYTES).digest() for text in texts]


def _targets(series: list[Series]) -> list[Target]:
    ours = named(series, OURS)
    targets = [
        Target(what=f"≥ 3 × {other.name}", value=ratio(ours, other), wanted=3.0)
        for other in series
        if other.role == "peer"
    ]
    limit = named(series, LIMIT)
    targets.append(
        Target(what="≥ 50 % of the limit", value=ratio(ours, limit), wanted=0.5, unit="%")
    )
    if any(other.name == LmdbGet.name for other in series):
        ceiling = ratio(limit, named(series, LmdbGet.name))
        targets.append(Target(what=f"the limit itself ÷ {LmdbGet.name}", value=ceiling))
    return targets
