"""Building a part of a corpus: as `embedcache.build`, but only some documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.corpus import CorpusReader, DocumentBatch, Source
from embedcache.keys import keys_of_utf8
from embedcache.misses import MissComputer
from embedcache.precompute import BuildOptions, open_view
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class PartReport:
    """What building a part did.

    Attributes:
        dataset: The name that the part was registered under.
        version: Its version.
        view: Fingerprint of the view.
        texts: Documents in the part.
        unique: Distinct texts among them.
        misses: Distinct texts that were computed here.
        tokens: Rows that were computed.
        seconds: From start to end, loading the module included.
        loading_seconds: Of these, to load it.
        texts_per_second: That the module computed once it was loaded; None if the store had
            them all.
    """

    dataset: str
    version: str
    view: str
    texts: int
    unique: int
    misses: int
    tokens: int
    seconds: float
    loading_seconds: float
    texts_per_second: float | None


def build_part(
    store: FeatureStore,
    sources: Sequence[Source],
    documents: NDArray[np.int64],
    *,
    module: str,
    dataset: str,
    options: BuildOptions,
    on_part: Callable[[int, int], None] = lambda _done, _all: None,
) -> PartReport:
    """Compute what the store lacks of some documents, and register these as a dataset.

    Args:
        store: An open store.
        sources: The corpus's files.
        documents: Places of the documents in the corpus, from 0, strictly ascending, (n,).
        module: The module's handle.
        dataset: Name to register under.
        options: As a build has them.
        on_part: Called as texts are computed: how many are, and of how many.

    Raises:
        CorpusError: if the corpus cannot be read.
        ModuleError: if the module cannot be used.
        EncodingError: if a text's features cannot be stored.
        StoreError: if the store cannot be written.
    """
    started = time.perf_counter()
    reader = CorpusReader(sources, options.corpus)
    pinned, view = open_view(store, module, options)
    clock = _Clock()

    def show() -> None:
        clock.mark(misses.counts.texts)
        on_part(misses.counts.texts, misses.num_texts)

    with (
        DatasetWriter(store.layout.tmp) as registered,
        MissComputer(
            store,
            pinned,
            view,
            limits=options.limits,
            batch_tokens=options.batch_tokens,
            on_part=show,
        ) as misses,
    ):
        for batch in choose_documents(reader, documents):
            keys = keys_of_utf8(batch.texts)
            registered.add(keys, batch.labels, batch.splits, batch.ids)
            misses.add(keys, batch)
            if misses.num_texts:
                clock.mark(misses.counts.texts)  # the module is loaded at the first miss
        misses.finish()
        version, num_unique = registered.finish()
        registered.publish(store.layout.dataset_path(version))
    report = PartReport(
        dataset=dataset,
        version=version,
        view=view.fingerprint,
        texts=len(registered),
        unique=num_unique,
        misses=misses.num_texts,
        tokens=misses.counts.tokens,
        seconds=round(time.perf_counter() - started, 3),
        loading_seconds=round(misses.loading_s, 3),
        texts_per_second=clock.texts_per_second,
    )
    digests = [
        {"path": source.path, "split": source.split, "digest": reader.digests[source.path]}
        for source in sources
    ]
    record = DatasetRecord(dataset, version, report.texts, num_unique, digests, created_at=0.0)
    store.catalog.add_dataset(record, view=view.fingerprint, report=_kept(report, module))
    return report


def choose_documents(
    batches: Iterable[DocumentBatch], documents: NDArray[np.int64]
) -> Iterator[DocumentBatch]:
    """The batches of a corpus with only some of their documents; empty ones are left out.

    Every batch is read, so that a bad line is an error wherever it stands.

    Args:
        batches: All of the corpus, in order.
        documents: Places of the documents in the corpus, from 0, strictly ascending, (n,).
    """
    first = 0
    for batch in batches:
        end = first + len(batch.texts)
        low, high = np.searchsorted(documents, (first, end))
        places = (documents[low:high] - first).tolist()
        first = end
        if places:
            yield DocumentBatch(
                batch.source,
                _take(batch.texts, places),
                None if batch.labels is None else _take(batch.labels, places),
                None if batch.splits is None else _take(batch.splits, places),
                None if batch.ids is None else _take(batch.ids, places),
                _take(batch.lines, places),
            )


class _Clock:
    """Tells how fast texts are computed, from two moments at which so many were."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def mark(self, num_texts: int) -> None:
        self._last = (time.perf_counter(), num_texts)
        self._first = self._first or self._last

    @property
    def texts_per_second(self) -> float | None:
        if self._first is None or self._last[1] == self._first[1]:
            return None
        seconds = max(self._last[0] - self._first[0], 1e-9)
        return (self._last[1] - self._first[1]) / seconds


def _kept(report: PartReport, module: str) -> dict[str, Any]:
    """What the catalog keeps of the build, under the names of other builds' reports."""
    return {**asdict(report), "module": module, "hits": report.unique - report.misses}


def _take(items: Sequence[_Item], places: Sequence[int]) -> list[_Item]:
    return [items[place] for place in places]
