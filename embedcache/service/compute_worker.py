"""What the compute worker does: texts through the module and into the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedcache.embedder import Embedder
from embedcache.errors import StoreLockedError
from embedcache.keys import KEY_BYTES
from embedcache.service.small_shards import compact_small_shards, count_small_shards
from embedcache.store.store import FeatureStore, open_store


@dataclass(frozen=True, slots=True)
class Embedded:
    """What one batch did.

    Attributes:
        computed: Texts that went through the module.
        tokens: Rows of them.
        shards: Digests of the shards written.
        small_shards: Small shards of the view by now.
    """

    computed: int
    tokens: int
    shards: tuple[str, ...]
    small_shards: int


class MissWorker:
    """Computes texts under any view of one store; the modules stay loaded."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._embedders: dict[str, Embedder] = {}

    def load(self, view: str) -> None:
        """Load a view's module; fine if it is loaded.

        Raises:
            ModuleError: if it cannot be loaded.
            UnknownNameError: if the view, or its module's handle, is not known.
        """
        self._embedder(view).load()

    def embed(self, view: str, keys: bytes, texts: Sequence[bytes]) -> Embedded:
        """Compute the texts that the store lacks; all are durable when this returns.

        Args:
            view: Fingerprint.
            keys: Of n texts, 16 bytes each.
            texts: Their UTF-8.

        Raises:
            EmbedCacheError: as `Embedder.embed_missing`.
        """
        rows = np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)
        counts = self._embedder(view).embed_missing(rows, texts)
        small = count_small_shards(self._store, view)
        return Embedded(counts.computed, counts.tokens, counts.shards, small)

    def compact(self, view: str) -> int:
        """Merge the small shards of a view, and keep what was found of its numbers.

        Returns:
            How many there were; 0 where another process compacts the store, too.

        Raises:
            StoreError: if a shard is damaged, or the device refuses.
        """
        embedder = self._embedder(view)
        try:
            merged = compact_small_shards(self._store, embedder.record)
        except StoreLockedError:
            return 0
        embedder.finish()
        return merged

    def close(self) -> None:
        """Save indexes and findings, and close the store."""
        for embedder in self._embedders.values():
            embedder.finish()
        self._store.close()

    def _embedder(self, view: str) -> Embedder:
        embedder = self._embedders.get(view)
        if embedder is None:
            embedder = self._embedders[view] = Embedder(self._store, view)
        return embedder


def open_miss_worker(store_path: str) -> MissWorker:
    """The worker of a store: the target of a `WorkerProcess`.

    Raises:
        StoreError: if there is no store.
    """
    return MissWorker(open_store(Path(store_path), create=False))
