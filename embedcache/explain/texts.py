"""Texts → under which views the store has them, or what nearly is them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import UnknownNameError
from embedcache.explain.differences import OtherView, view_differences
from embedcache.explain.near_texts import near_texts
from embedcache.keys import Keys, keys_of_texts, keys_of_utf8, split_keys, utf8_of_text
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import pin_module
from embedcache.store.database.records import ViewRecord
from embedcache.store.reader import ViewReader
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView

_CHUNK_TEXTS = 1024


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """A text that the store has and that nearly is the one asked for.

    Attributes:
        what: In what it differs, to be read after "the same text".
        key: Its key, 32 hexadecimal digits.
        views: Fingerprints of the views that hold it, that asked for first.
    """

    what: str
    key: str
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text hits or misses under a view.

    Attributes:
        key: The text's key, 32 hexadecimal digits.
        text_bytes: Length of the text in UTF-8.
        hit: Whether the view holds it.
        view: Fingerprint of the view asked for, whether or not the store knows it.
        module: That view's module handle.
        tokens: Rows of the stored matrix; None for a miss.
        truncated: Whether the text was cut; None for a miss.
        windowed: Whether it was stitched from windows; None for a miss.
        shard: Digest of a shard that holds it; None for a miss.
        others: For a miss, the views that hold it; fewest differences first.
        variants: For a text that no view holds, what nearly is it.
    """

    key: str
    text_bytes: int
    hit: bool
    view: str
    module: str
    tokens: int | None
    truncated: bool | None
    windowed: bool | None
    shard: str | None
    others: tuple[OtherView, ...]
    variants: tuple[StoredVariant, ...]

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def view_to_build(
    store: FeatureStore, module: str, settings: ViewSettings, *, preprocess: str | None = None
) -> ViewRecord:
    """The view that a build with these options would have; nothing is written.

    TensorFlow is imported only for a module that the store has never seen.

    Raises:
        ModuleError: as the build would.
        UnknownNameError: if the store has no views at all: then nothing can hit.
    """
    if not store.catalog.views():
        raise UnknownNameError(
            f"{store.path}: holds no features yet; `embedcache build CORPUS` makes some"
        )
    pinned = pin_module(store.catalog, module, preprocess=preprocess, keep=False)
    view = pinned.view(settings)
    return ViewRecord(view.fingerprint, view, pinned.handle, pinned.preprocess_handle)


def explain_text(
    store: FeatureStore, view: str | FeatureView | ViewRecord, text: str
) -> Explanation:
    """Why a text hits or misses under a view; see `explain_texts`."""
    return explain_texts(store, view, [text])[0]


def explain_texts(
    store: FeatureStore, view: str | FeatureView | ViewRecord, texts: Sequence[str]
) -> list[Explanation]:
    """Why texts hit or miss under a view. Nothing is computed or written.

    Args:
        store: An open store.
        view: The fingerprint of a view of the store, or its beginning; or any view, such as
            that of `view_to_build`, which also knows the module's handle.
        texts: n texts.

    Returns:
        n explanations, in the order of the texts.

    Raises:
        UnknownNameError: if the store does not know the fingerprint.
        CorpusError: if a text has a lone surrogate.
        CorruptShardError: if a shard that has to be read is damaged.
    """
    asked = _record_of(store, view)
    others = _other_views(store, asked)
    readers = [store.reader(asked), *(store.reader(record) for record, _ in others)]
    fingerprints = [reader.view.fingerprint for reader in readers]
    encoded = [utf8_of_text(text) for text in texts]
    keys = keys_of_utf8(encoded)
    refs = readers[0].locate(keys)
    hits = refs.shards >= 0
    shards = iter(_shards_of(store, asked.fingerprint, keys[hits]))
    held = _held(readers[1:], keys)
    nowhere = np.flatnonzero(~hits & ~held.any(axis=0)).tolist()
    found = _stored_variants(readers, fingerprints, [texts[row] for row in nowhere])
    variants = dict(zip(nowhere, found, strict=True))
    return [
        Explanation(
            key=keys[row].tobytes().hex(),
            text_bytes=len(encoded[row]),
            hit=is_hit,
            view=asked.fingerprint,
            module=asked.handle,
            tokens=int(refs.lengths[row]) if is_hit else None,
            truncated=bool(refs.truncated[row]) if is_hit else None,
            windowed=bool(refs.windowed[row]) if is_hit else None,
            shard=next(shards) if is_hit else None,
            others=() if is_hit else _holding([other for _, other in others], held[:, row]),
            variants=variants.get(row, ()),
        )
        for row, is_hit in enumerate(hits.tolist())
    ]


def _record_of(store: FeatureStore, view: str | FeatureView | ViewRecord) -> ViewRecord:
    if isinstance(view, ViewRecord):
        return view
    if isinstance(view, str):
        return store.catalog.find_view(view)
    known = {record.fingerprint: record for record in store.catalog.views()}
    return known.get(view.fingerprint) or ViewRecord(view.fingerprint, view, "")


def _other_views(store: FeatureStore, asked: ViewRecord) -> list[tuple[ViewRecord, OtherView]]:
    """All views but the one asked for, fewest differences first, the newest of equals."""
    others = [
        (record, OtherView(record.fingerprint, record.handle, view_differences(record, asked)))
        for record in reversed(store.catalog.views())
        if record.fingerprint != asked.fingerprint
    ]
    return sorted(others, key=lambda pair: len(pair[1].differences))


def _holding(others: Sequence[OtherView], held: NDArray[np.bool_]) -> tuple[OtherView, ...]:
    return tuple(other for other, holds in zip(others, held.tolist(), strict=True) if holds)


def _held(readers: Sequence[ViewReader], keys: Keys) -> NDArray[np.bool_]:
    """Which views hold which keys, (len(readers), n) bool."""
    held = np.zeros((len(readers), len(keys)), np.bool_)
    for row, reader in zip(held, readers, strict=True):
        row[:] = reader.contains(keys)
    return held


def _shards_of(store: FeatureStore, view: str, keys: Keys) -> list[str | None]:
    """The digest of a shard that holds each key; None if none does any more."""
    digests: list[str | None] = [None] * len(keys)
    high, _ = split_keys(keys)
    for record in store.catalog.shards(view) if len(keys) else []:
        stored = Shard(store.layout.shard_path(view, record.digest)).keys
        if len(stored) == 0:
            continue
        # The first 8 bytes tell 2^18 keys of a shard apart, but in one shard of 2^29.
        places = np.minimum(np.searchsorted(split_keys(stored)[0], high), len(stored) - 1)
        for row in np.flatnonzero((stored[places] == keys).all(axis=1)).tolist():
            digests[row] = record.digest
    return digests


def _stored_variants(
    readers: Sequence[ViewReader], views: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[StoredVariant, ...]]:
    """For each text, what nearly is it and lies under one of the views at least."""
    for start in range(0, len(texts), _CHUNK_TEXTS):
        near = [near_texts(text) for text in texts[start : start + _CHUNK_TEXTS]]
        keys = keys_of_texts([variant.text for variants in near for variant in variants])
        held = _held(readers, keys)
        place = 0
        for variants in near:
            places = range(place, place + len(variants))
            place += len(variants)
            yield tuple(
                StoredVariant(
                    variant.what,
                    keys[at].tobytes().hex(),
                    tuple(views[row] for row in np.flatnonzero(held[:, at]).tolist()),
                )
                for variant, at in zip(variants, places, strict=True)
                if held[:, at].any()
            )
