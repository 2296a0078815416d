"""ServedView: one view in a server's process, which answers hits without any query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from embedcache.keys import KEY_BYTES, Keys
from embedcache.store.database.records import ShardRecord, ViewRecord
from embedcache.store.reader import ViewReader
from embedcache.store.refs import SEVERAL, FeatureRefs
from embedcache.store.store import FeatureStore

MAX_PLACES = 1 << 15
"""Texts whose places are kept at hand, at about 200 bytes each."""
MAX_SINGLE = 1 << 12
"""Texts that were asked for alone, whose references are kept as they are: about 1 kB each."""
MAX_REMEMBERED = 128
"""Up to so many keys are looked for one by one among the places at hand: one took 7 µs so and
65 µs through the index, 32 took 20 and 170; above a hundred the index is as fast."""

_Place = bytes
"""Shard, start, length, truncated, windowed, as in `FeatureRefs`: five int64."""
_PLACE_NUMBERS = 5


@dataclass(frozen=True, slots=True)
class ViewSize:
    """How much is stored under a view.

    Attributes:
        num_texts: Texts; one that lies twice counts twice.
        num_tokens: Their rows.
        num_bytes: Of the shards.
        num_shards: Shards.
    """

    num_texts: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_shards: int = 0

    @classmethod
    def of_shards(cls, shards: Sequence[ShardRecord]) -> ViewSize:
        """The size of some shards together."""
        return cls(
            sum(shard.num_texts for shard in shards),
            sum(shard.num_tokens for shard in shards),
            sum(shard.num_bytes for shard in shards),
            len(shards),
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """A reader, and what is known with it.

    Attributes:
        reader: Covers the shards.
        digests: The shards, or more by now.
        places: Places of texts that were asked for lately, in this reader's numbers.
        single: References of texts that were asked for alone, each one text's.
    """

    reader: ViewReader
    digests: set[str]
    places: dict[bytes, _Place]
    single: dict[bytes, FeatureRefs]


class ServedView:
    """A view that a service serves.

    Look-ups are for the event loop's thread, and wait for nothing but the memory map. What
    brings the reader up to date runs in any other thread, one at a time.

    Attributes:
        alias: What it is called besides its fingerprint; None: nothing.
        record: The view.
        size: How much is stored under it, as was last looked.
    """

    def __init__(self, alias: str | None, record: ViewRecord, covered: Coverage) -> None:
        self.alias = alias
        self.record = record
        self.size = ViewSize()
        self._covered = covered

    @property
    def fingerprint(self) -> str:
        """The view's fingerprint."""
        return self.record.fingerprint

    @property
    def reader(self) -> ViewReader:
        """What gathers the matrices that `locate` has found just now."""
        return self._covered.reader

    @property
    def coverage(self) -> Coverage:
        """What it reads by now."""
        return self._covered

    def replace(self, record: ViewRecord, covered: Coverage, size: ViewSize) -> None:
        """Read by this from now on; for the event loop's thread."""
        self.record, self._covered, self.size = record, covered, size

    def locate(self, keys: Keys) -> FeatureRefs:
        """Where the matrices of keys lie; the shard is -1 where one is missing.

        Raises:
            CorruptShardError: if a shard is damaged or lost.
        """
        covered = self._covered
        if len(keys) > MAX_REMEMBERED:
            return covered.reader.locate(keys)
        names: list[bytes] = np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").reshape(-1).tolist()
        if len(names) == 1 and names[0] in covered.single:
            return covered.single[names[0]]
        found = [place for place in map(covered.places.get, names) if place is not None]
        if found and len(found) == len(names):
            refs = _refs_of(keys, b"".join(found))
            if len(names) == 1:
                _remember_single(covered.single, names[0], refs)
            return refs
        refs = covered.reader.locate(keys)
        _remember(covered.places, names, refs)
        return refs


def _refs_of(keys: Keys, places: bytes) -> FeatureRefs:
    columns = np.frombuffer(places, np.int64).reshape(-1, _PLACE_NUMBERS).T
    # Contiguous, as what is done with them is faster then.
    shards, starts, lengths, truncated, windowed = np.ascontiguousarray(columns)
    one_shard = int(shards[0])
    if (shards != one_shard).any():
        one_shard = SEVERAL
    return FeatureRefs(keys, shards, starts, lengths, truncated != 0, windowed != 0, one_shard)


def _remember_single(single: dict[bytes, FeatureRefs], name: bytes, refs: FeatureRefs) -> None:
    if len(single) >= MAX_SINGLE:
        single.clear()
    single[name] = refs


def _remember(places: dict[bytes, _Place], names: Iterable[bytes], refs: FeatureRefs) -> None:
    if len(places) > MAX_PLACES:
        # All at once: dropping one at a time costs more than to find them again.
        places.clear()
    columns = (refs.shards, refs.starts, refs.lengths, refs.truncated, refs.windowed)
    rows = np.stack(columns, axis=1, dtype=np.int64, casting="unsafe")
    packed, shards = rows.tobytes(), refs.shards.tolist()
    size = _PLACE_NUMBERS * rows.itemsize
    for at, (name, shard) in enumerate(zip(names, shards, strict=True)):
        if shard >= 0:
            places[name] = packed[at * size : (at + 1) * size]


def cover_view(
    store: FeatureStore, record: ViewRecord, digests: Sequence[str], before: Coverage | None
) -> Coverage:
    """A reader of exactly these shards: the one there was, unless it has others, too.

    Hits go on meanwhile. A shard that has been added makes them wait no longer than it takes
    to open it; where one is gone, another reader is made aside.

    Args:
        store: An open store.
        record: The view.
        digests: Its shards.
        before: What there was.

    Raises:
        CorruptShardError: if a shard that has to be read is damaged.
    """
    if before is not None and before.digests.issubset(digests):
        add_shards(before, digests)
        return before
    fingerprint, catalog = record.fingerprint, store.catalog

    def live_shards() -> list[str]:
        return [shard.digest for shard in catalog.shards(fingerprint)]

    reader = ViewReader(store.layout, record.view, live_shards=live_shards)
    reader.refresh(digests)
    covered = Coverage(reader, set(digests), {}, {})
    if before is not None and before.places:
        # Also opens the shards that are in use, which would make the first hits wait.
        names = list(before.places)
        keys = np.frombuffer(b"".join(names), np.uint8).reshape(-1, KEY_BYTES)
        _remember(covered.places, names, reader.locate(keys))
    return covered


def add_shards(covered: Coverage, digests: Sequence[str]) -> None:
    """Cover some more shards.

    Raises:
        CorruptShardError: if one is damaged, or gone (`MissingShardError`).
    """
    for digest in digests:
        if digest not in covered.digests:
            covered.reader.add_shard(digest)
            covered.digests.add(digest)
