"""Tables key → 8 bytes, of keys that come sorted: the peers of the index in B6."""

from __future__ import annotations

import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import installed_version
from embedcache.keys import Keys

_SLICE_KEYS = 100_000
PLACE = np.dtype("<i8")


class Table(ABC):
    """A table on disk or in memory.

    Attributes:
        name: What it is called.
        parts: A slow one takes only one of so many parts of the queries a round.
    """

    name = ""
    parts = 1

    @abstractmethod
    def write(self, keys: Keys, places: NDArray[np.int64], folder: Path) -> None:
        """Write the table, of ascending keys, and open it."""

    @abstractmethod
    def find(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Look keys up, in what form is fastest."""

    @abstractmethod
    def count(self, found: Sequence[object]) -> int:
        """How many were found."""

    @abstractmethod
    def places(self, keys: Sequence[bytes], found: Sequence[object]) -> NDArray[np.int64]:
        """The places that `find` found, -1 where there is none."""

    @abstractmethod
    def num_bytes(self) -> int:
        """What the table takes, on disk or in memory."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class LmdbGet(Table):
    """One ``get`` a key, in one transaction."""

    name = "LMDB get"
    parts = 4

    def write(self, keys: Keys, places: NDArray[np.int64], folder: Path) -> None:
        import lmdb

        self.path = folder / "lmdb"
        size = 128 * len(keys) + (16 << 20)
        with (
            lmdb.open(str(self.path), map_size=size) as environment,
            environment.begin(write=True) as transaction,
            transaction.cursor() as cursor,
        ):
            for some_keys, some_places in _slices(keys, places):
                values = some_places.astype(PLACE).view("V8").tolist()
                cursor.putmulti(zip(some_keys, values, strict=True), append=True)
        self.open()

    def open(self) -> None:
        """Open the environment for reading."""
        import lmdb

        self.environment = lmdb.open(str(self.path), readonly=True, lock=False)

    def find(self, keys: Sequence[bytes]) -> Sequence[object]:
        with self.environment.begin() as transaction:
            return list(map(transaction.get, keys))

    def count(self, found: Sequence[object]) -> int:
        return len(found) - found.count(None)

    def places(self, keys: Sequence[bytes], found: Sequence[object]) -> NDArray[np.int64]:
        missing = np.int64(-1).tobytes()
        return np.frombuffer(b"".join(value or missing for value in found), PLACE)  # type: ignore[misc]

    def num_bytes(self) -> int:
        stat = self.environment.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages * stat["psize"])

    def close(self) -> None:
        self.environment.close()


class LmdbGetMulti(LmdbGet):
    """All keys in one call, in one transaction; of the same environment."""

    name = "LMDB getmulti"

    def __init__(self, other: LmdbGet) -> None:
        self._other = other

    def write(self, keys: Keys, places: NDArray[np.int64], folder: Path) -> None:
        # An environment can be opened once in a process.
        self.environment = self._other.environment

    def find(self, keys: Sequence[bytes]) -> Sequence[object]:
        # Three to ten times as fast as with ``buffers=True``.
        with self.environment.begin() as transaction, transaction.cursor() as cursor:
            found: list[tuple[bytes, bytes]] = cursor.getmulti(keys)
            return found

    def count(self, found: Sequence[object]) -> int:
        return len(found)

    def places(self, keys: Sequence[bytes], found: Sequence[object]) -> NDArray[np.int64]:
        known: dict[bytes, bytes] = dict(found)  # type: ignore[arg-type]
        missing = np.int64(-1).tobytes()
        return np.frombuffer(b"".join(known.get(key, missing) for key in keys), PLACE)

    def close(self) -> None:
        """The other one closes the environment."""


class Sqlite(Table):
    """One ``SELECT`` a key, prepared once, of a table WITHOUT ROWID."""

    name = "SQLite get"
    parts = 10

    def write(self, keys: Keys, places: NDArray[np.int64], folder: Path) -> None:
        self.path = folder / "keys.sqlite"
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE features (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID"
        )
        for some_keys, some_places in _slices(keys, places):
            entries = zip(some_keys, some_places.tolist(), strict=True)
            connection.executemany("INSERT INTO features VALUES (?, ?)", entries)
        connection.commit()
        connection.close()
        self.open()

    def open(self) -> None:
        """Open the database; mapped, which is faster than its own cache."""
        self.connection = sqlite3.connect(self.path)
        self.connection.execute(f"PRAGMA mmap_size = {1 << 40}")

    def find(self, keys: Sequence[bytes]) -> Sequence[object]:
        execute = self.connection.execute
        query = "SELECT place FROM features WHERE key = ?"
        return [execute(query, (key,)).fetchone() for key in keys]

    def count(self, found: Sequence[object]) -> int:
        return len(found) - found.count(None)

    def places(self, keys: Sequence[bytes], found: Sequence[object]) -> NDArray[np.int64]:
        return np.array([-1 if row is None else row[0] for row in found], PLACE)  # type: ignore[index]

    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def close(self) -> None:
        self.connection.close()


class Dict(Table):
    """A ``dict`` of bytes → int, in memory."""

    name = "dict, in memory"

    def write(self, keys: Keys, places: NDArray[np.int64], folder: Path) -> None:
        self.known: dict[bytes, int] = {}
        for some_keys, some_places in _slices(keys, places):
            self.known.update(zip(some_keys, some_places.tolist(), strict=True))

    def find(self, keys: Sequence[bytes]) -> Sequence[object]:
        return list(map(self.known.get, keys))

    def count(self, found: Sequence[object]) -> int:
        return len(found) - found.count(None)

    def places(self, keys: Sequence[bytes], found: Sequence[object]) -> NDArray[np.int64]:
        return np.array([-1 if place is None else place for place in found], PLACE)

    def num_bytes(self) -> int:
        key, place = next(iter(self.known.items()))
        return sys.getsizeof(self.known) + len(self.known) * (
            sys.getsizeof(key) + sys.getsizeof(place)
        )

    def close(self) -> None:
        self.known = {}


def list_of_keys(keys: Keys) -> list[bytes]:
    """Keys as these tables take them."""
    content = keys.tobytes()
    return [content[start : start + 16] for start in range(0, len(content), 16)]


def make_tables(
    keys: Keys, places: NDArray[np.int64], folder: Path
) -> tuple[list[Table], list[str]]:
    """The tables that can be made, with ascending keys in them; and what is left out."""
    tables: list[Table] = [Sqlite(), Dict()]
    skipped = []
    if installed_version("lmdb") is None:
        skipped = ["LMDB: the package lmdb is not installed"]
    else:
        lmdb_get = LmdbGet()
        tables = [lmdb_get, LmdbGetMulti(lmdb_get), *tables]
    for table in tables:
        table.write(keys, places, folder)
    return tables, skipped


def _slices(
    keys: Keys, places: NDArray[np.int64]
) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
    for start in range(0, len(keys), _SLICE_KEYS):
        chosen = slice(start, start + _SLICE_KEYS)
        yield list_of_keys(keys[chosen]), places[chosen]
