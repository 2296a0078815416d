"""The precompute stage: every text of a corpus through the module once, ever.

    corpus → keys → misses → module → shards

The corpus streams by; what is kept of it in memory is one buffer of missing texts and the
open shard. A text whose key the store has, or that stood earlier in the corpus, costs one
hash and one look-up. TensorFlow is imported at the first miss. Several builders of one corpus
share its work (`embedcache.misses`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.corpus import CorpusOptions, CorpusReader, Source, sources_of
from embedcache.corpus.selection import DocumentSelection, choose_documents
from embedcache.embedder import Embedder
from embedcache.errors import CorpusError
from embedcache.keys import keys_of_utf8
from embedcache.misses import MissComputer
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import PinnedModule, pin_module
from embedcache.ragged import RaggedArray
from embedcache.store.database.records import DatasetRecord, ViewRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import MAX_TOKENS_DEFAULT, FeatureView

MAX_NAME_LENGTH = 255

Corpus = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Sequence[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build may be told beyond its corpus and module.

    Attributes:
        preprocess: Handle of the preprocessor, for an encoder of word pieces; None: the one
            that is known for it.
        granularity: ``"token"``, ``"sentence"`` or ``"window"``; None: what suits the module.
        layer: ``"3"``, ``"3,4"``, ``"mean"``, ``"all"``, a name; None: the module's output.
        keep_special_tokens: Whether rows of special tokens such as ``[CLS]`` are kept.
        context_words: With ``granularity="window"``: words on either side; None: 2.
        max_tokens: Rows kept of a text at most; with ``overflow="window"`` the longest window.
        overflow: ``"truncate"``, ``"error"`` or ``"window"`` for a longer one.
        dtype: Storage dtype: ``"float16"``, ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        batch_tokens: Tokens that go through a contextual module at once, padding included;
            it changes no number.
        limits: When shards close, and how rows are laid out in them.
        corpus: How files are read.
    """

    preprocess: str | None = None
    granularity: str | None = None
    layer: str | None = None
    keep_special_tokens: bool = False
    context_words: int | None = None
    max_tokens: int = MAX_TOKENS_DEFAULT
    overflow: str = "truncate"
    dtype: str = "float16"
    batch_tokens: int = BATCH_TOKENS_DEFAULT
    limits: WriterLimits = field(default_factory=WriterLimits)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    @property
    def view_settings(self) -> ViewSettings:
        """Those of them that are part of the view."""
        return ViewSettings(
            **{item.name: getattr(self, item.name) for item in fields(ViewSettings)}
        )


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: ``build --json``.

    Attributes:
        dataset: The name that the corpus was registered under.
        version: Its version: the digest of its content.
        view: Fingerprint of the view.
        module: The module's handle.
        texts: Documents in the corpus, or those of them that were asked for.
        unique: Distinct texts among them.
        hits: Distinct texts that were not computed here: the store had them before, or another
            builder stored them meanwhile. ``hits + misses == unique``.
        misses: Distinct texts that were computed here.
        tokens: Rows that were computed.
        truncated: Texts that were cut at the view's longest length, of those computed.
        windowed: Longer texts that were stitched from overlapping windows, of those computed.
        shards: Shards written.
        bytes: Their size.
        seconds: From start to end, loading the module included.
        loading_seconds: Of these, until the module was known, and to load it if a text was new.
        texts_per_second: ``texts / seconds``.
        fidelity: What is known of the view's numbers, by this build and those before. By
            computing texts again, alone: ``"texts"``, how many, and ``"max_difference"``. By
            comparing rows with what was stored of them: ``"rms_error"``, the root of the
            squared error over the squared norm, and ``"max_error"``, the largest error of a
            number as a share of its row's largest; None if nothing was computed yet.
    """

    dataset: str
    version: str
    view: str
    module: str
    texts: int
    unique: int
    hits: int
    misses: int
    tokens: int
    truncated: int
    windowed: int
    shards: int
    bytes: int
    seconds: float
    loading_seconds: float
    texts_per_second: float
    fidelity: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        texts: Documents read.
        misses: Distinct texts that the store lacked, and that this builder computes.
        waiting: Those of them that are yet to be computed.
        bytes_read: Of the corpus's files, as they lie on disk.
        bytes_total: Of them all; None if one is standard input.
        elsewhere: Distinct texts that other builders are computing.
        is_blocked: Whether nothing is left to do here but to wait for those.
    """

    texts: int
    misses: int
    waiting: int
    bytes_read: int
    bytes_total: int | None
    elsewhere: int = 0
    is_blocked: bool = False


ProgressCallback = Callable[[BuildProgress], None]


def build(
    store: FeatureStore,
    corpus: Corpus,
    *,
    module: str = DEFAULT_HANDLE,
    dataset: str | None = None,
    options: BuildOptions | None = None,
    documents: DocumentSelection | None = None,
    on_progress: ProgressCallback = lambda _progress: None,
) -> BuildReport:
    """Compute what the store lacks of a corpus, and register the corpus as a dataset.

    Several of these, in any processes of one machine, share the work: what another one is
    computing is waited for at the end, not computed again.

    Args:
        store: An open store.
        corpus: A path, ``{"train": path, …}``, or sources; ``"-"`` is standard input.
        module: The module's handle.
        dataset: Name to register under; None: the first file's name up to its first dot.
        options: Everything else.
        documents: Places of the documents to take, counted from 0 over all files, strictly
            ascending, (n,) int64: they alone are computed and make the dataset. None: all.
        on_progress: Called after each batch of documents.

    Raises:
        CorpusError: at the first document that cannot be read. What was computed is kept.
        ModuleError: if the module cannot be used.
        EncodingError: if a text's features cannot be stored.
        StoreError: if the store cannot be written.
        ValueError: if the places of the documents are not strictly ascending.
    """
    started = time.monotonic()
    options = options or BuildOptions()
    sources = sources_of(corpus)
    name = default_dataset_name(sources) if dataset is None else checked_dataset_name(dataset)
    reader = CorpusReader(sources, options.corpus)
    # Asked first: a file that is not there is told before the module takes its time to load.
    bytes_total = reader.bytes_total
    opening = time.monotonic()
    pinned, view = open_view(store, module, options)
    opening_s = time.monotonic() - opening

    def show() -> None:
        on_progress(
            BuildProgress(
                len(registered),
                misses.num_texts,
                misses.num_waiting,
                reader.bytes_read,
                bytes_total,
                elsewhere=misses.num_elsewhere,
                is_blocked=misses.is_waiting,
            )
        )

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
        for batch in reader if documents is None else choose_documents(reader, documents):
            keys = keys_of_utf8(batch.texts)
            registered.add(keys, batch.labels, batch.splits, batch.ids)
            misses.add(keys, batch)
            show()
        misses.finish()
        version, num_unique = registered.finish()
        registered.publish(store.layout.dataset_path(version))
    provenance = _provenance(sources, reader.digests)
    record = DatasetRecord(name, version, len(registered), num_unique, provenance, created_at=0.0)
    checked = store.catalog.find_view(view.fingerprint)
    seconds = (time.monotonic() - started, opening_s + misses.loading_s)
    report = _report(record, misses, pinned, checked, seconds=seconds)
    store.catalog.add_dataset(record, view=view.fingerprint, report=report.to_record())
    return report


def _provenance(sources: Sequence[Source], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """The corpus's files with their splits and digests, as the catalog keeps them."""
    return [
        {"path": source.path, "split": source.split, "digest": digests[source.path]}
        for source in sources
    ]


def _report(
    record: DatasetRecord,
    misses: MissComputer,
    pinned: PinnedModule,
    view: ViewRecord,
    *,
    seconds: tuple[float, float],
) -> BuildReport:
    return BuildReport(
        dataset=record.name,
        version=record.version,
        view=view.fingerprint,
        module=pinned.handle,
        texts=record.num_documents,
        unique=record.num_unique,
        hits=record.num_unique - misses.num_texts,
        misses=misses.num_texts,
        tokens=misses.counts.tokens,
        truncated=misses.counts.truncated,
        windowed=misses.counts.windowed,
        shards=len(misses.published_bytes),
        bytes=sum(misses.published_bytes),
        seconds=round(seconds[0], 3),
        loading_seconds=round(seconds[1], 3),
        texts_per_second=round(record.num_documents / max(seconds[0], 1e-9), 1),
        fidelity={
            "texts": view.checked_texts,
            "max_difference": view.max_difference,
            "rms_error": view.rms_error,
            "max_error": view.max_error,
        },
    )


def embed(store: FeatureStore, view: str, texts: Sequence[str]) -> RaggedArray:
    """The features of texts; those that are missing are computed and kept.

    Args:
        store: An open store.
        view: Fingerprint of a view of the store, or its beginning.
        texts: n texts.

    Returns:
        n matrices of the view's storage dtype, in the order of the texts.

    Raises:
        ModuleChangedError: if the module's files are not those the view was made with.
        CorpusError: if a text has a lone surrogate.
        UnknownNameError: if the store does not know the view.
    """
    record = store.catalog.find_view(view)
    with Embedder(store, record) as embedder:
        embedder.embed_texts(texts)
    return store.get(record.view, texts)


def open_view(
    store: FeatureStore, handle: str, options: BuildOptions
) -> tuple[PinnedModule, FeatureView]:
    """The module of a handle, and its view under these options, made known to the store."""
    pinned = pin_module(store.catalog, handle, preprocess=options.preprocess)
    view = pinned.view(options.view_settings)
    store.catalog.add_view(view, pinned.handle, preprocess=pinned.preprocess_handle)
    return pinned, view


def default_dataset_name(sources: Sequence[Source]) -> str:
    """What a corpus is called if nobody says: ``sst2.train.tsv`` → ``sst2``; ``-`` → ``stdin``."""
    path = sources[0].path
    stem = "stdin" if path == "-" else Path(path).name.split(".")[0]
    return re.sub(r"[^\w+-]", "_", stem)[:MAX_NAME_LENGTH] or "corpus"


def checked_dataset_name(name: str) -> str:
    """The name, if a dataset may have it.

    Raises:
        CorpusError: if it is empty, too long, or has an ``@`` or a character that is not
            printable.
    """
    if not name.isprintable() or "@" in name or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise CorpusError(
            f"{name!r} cannot name a dataset; use 1 to {MAX_NAME_LENGTH} printable characters"
            " without @"
        )
    return name
