"""Embedder: texts that a store lacks, computed by a module that stays loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.corpus import DocumentBatch, Source
from embedcache.errors import FidelityError, StoreError
from embedcache.keys import Keys, keys_of_utf8, utf8_of_text
from embedcache.misses import MissComputer
from embedcache.pinning import pin_module_of_view
from embedcache.store.database.records import ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view_module import ViewModule

TEXTS_SOURCE = "texts"
"""What messages call the place of a text: ``texts:1`` is the first one given."""


@dataclass(frozen=True, slots=True)
class EmbedCounts:
    """What one call of `Embedder.embed_missing` did.

    Attributes:
        computed: Texts that went through the module.
        tokens: Rows of them.
        shards: Digests of the shards written.
    """

    computed: int
    tokens: int
    shards: tuple[str, ...]


class Embedder:
    """Computes texts under one view; a context manager. One thread at a time.

    Constructing it loads nothing; the module is loaded at the first text that is missing, or
    by `load`, and stays loaded. What a call has shown of the view's numbers is kept with the
    view, and the index is saved, by `finish`, which leaving it calls.

    Args:
        store: An open store.
        view: Fingerprint of a view of the store, or its beginning; or the view's record.
        limits: When shards close.
        batch_tokens: Tokens that go through a contextual module at once.

    Raises:
        UnknownNameError: if the store does not know the view.
    """

    def __init__(
        self,
        store: FeatureStore,
        view: str | ViewRecord,
        *,
        limits: WriterLimits | None = None,
        batch_tokens: int = BATCH_TOKENS_DEFAULT,
    ) -> None:
        self._store = store
        self.record = store.catalog.find_view(view) if isinstance(view, str) else view
        self._limits = limits
        self._batch_tokens = batch_tokens
        self._module: ViewModule | None = None
        self._unfit: FidelityError | None = None

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
            return
        # The error that there is comes first.
        with suppress(StoreError):
            self.finish()

    @property
    def is_loaded(self) -> bool:
        """Whether the module is in memory."""
        return self._module is not None and self._module.is_loaded

    def load(self) -> None:
        """Load the module now; fine if it is loaded.

        Raises:
            ModuleChangedError: if the module's files are not those the view was made with.
            ModuleError: if it cannot be loaded, or the features were imported.
            UnknownNameError: if the catalog has lost the module's handle.
        """
        self._pinned().load_encoder()

    def embed_texts(self, texts: Sequence[str]) -> EmbedCounts:
        """`embed_missing` of texts.

        Raises:
            CorpusError: if a text has a lone surrogate.
        """
        encoded = [utf8_of_text(text) for text in texts]
        return self.embed_missing(keys_of_utf8(encoded), encoded)

    def embed_missing(self, keys: Keys, texts: Sequence[bytes]) -> EmbedCounts:
        """Compute the texts that the store lacks; all of them are durable when this returns.

        After an error what was computed by then is kept, but nothing after a `FidelityError`,
        nor ever again then.

        Args:
            keys: Of the texts, (n, 16), with repetitions or not.
            texts: UTF-8 of n texts.

        Raises:
            ModuleError: as `load`; or if the module fails on a text, or on several at once.
            EncodingError: if a text's features cannot be stored: names it by its place, from
                ``texts:1`` on.
            FidelityError: if rows computed in a batch differ from those of the text alone.
            StoreError: if the store cannot be written.
        """
        if self._unfit is not None:
            raise self._unfit
        reader = self._store.reader(self.record)
        missing = np.flatnonzero(~reader.contains(keys))
        if not len(missing):
            return EmbedCounts(0, 0, ())
        places = range(1, len(texts) + 1)
        source = Source(TEXTS_SOURCE, None)
        batch = DocumentBatch(source, list(texts), None, None, None, places)
        try:
            with self._computer() as misses:
                misses.add(keys, batch)
                misses.finish()
        except FidelityError as error:
            self._unfit = error
            raise
        reader.save_large_index()
        digests = tuple(record.digest for record in misses.published)
        return EmbedCounts(misses.counts.texts, misses.counts.tokens, digests)

    def finish(self) -> None:
        """Keep what was found of the view's numbers, and save the index; fine if it is done.

        Raises:
            StoreError: if the catalog cannot be written.
        """
        if self._module is None:
            return
        if self._unfit is None:
            self._module.keep_findings(self._store.catalog)
        self._store.reader(self.record).save_index()

    def _computer(self) -> MissComputer:
        return MissComputer(
            self._store,
            self._pinned(),
            self.record.view,
            limits=self._limits,
            batch_tokens=self._batch_tokens,
        )

    def _pinned(self) -> ViewModule:
        if self._module is None:
            pinned = pin_module_of_view(self._store.catalog, self.record)
            self._module = ViewModule(pinned, self.record.view)
        return self._module
