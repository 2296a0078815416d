"""The precompute stage: every text of a corpus through the module once, ever.

    corpus → keys → misses → module → shards

The corpus streams by; what is kept of it in memory is one buffer of missing texts and the
open shard. A text whose key the store has, or that stood earlier in the corpus, costs one
hash and one look-up. TensorFlow is imported at the first miss.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from embedcache.compute import FeatureComputer, MissingTexts
from embedcache.corpus import CorpusOptions, CorpusReader, DocumentBatch, Source, sources_of
from embedcache.errors import CorpusError, StoreError
from embedcache.keys import KEY_BYTES, Keys, keys_of_utf8, utf8_of_text
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.pinning import PinnedModule, pin_module, pin_module_of_view
from embedcache.ragged import RaggedArray
from embedcache.store.dataset import DatasetWriter
from embedcache.store.records import DatasetRecord
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import MAX_TOKENS_DEFAULT, FeatureView

BATCH_TEXTS = 4096
BATCH_BYTES = 1 << 18
"""Missing texts are computed so many at a time. On 61,000 texts of 420 bytes, batches of 256 KiB
took 16 s and 1.2 GB, batches of 4 MiB 33 s and 6.2 GB: TensorFlow's tokenising takes some
hundred bytes a character while it runs, and more of it than the processor's caches hold."""

MAX_NAME_LENGTH = 255

Corpus = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Sequence[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build may be told beyond its corpus and module.

    Attributes:
        max_tokens: Rows kept of a text at most.
        overflow: ``"truncate"`` or ``"error"`` for a longer one.
        dtype: Storage dtype, ``"float16"`` or ``"float32"``.
        limits: When shards close, and how rows are laid out in them.
        corpus: How files are read.
    """

    max_tokens: int = MAX_TOKENS_DEFAULT
    overflow: str = "truncate"
    dtype: str = "float16"
    limits: WriterLimits = field(default_factory=WriterLimits)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: ``build --json``.

    Attributes:
        dataset: The name that the corpus was registered under.
        version: Its version: the digest of its content.
        view: Fingerprint of the view.
        module: The module's handle.
        texts: Documents in the corpus.
        unique: Distinct texts among them.
        hits: Distinct texts that the store had before.
        misses: Distinct texts that were computed.
        tokens: Rows that were computed.
        truncated: Texts that were cut at the view's longest length, of those computed.
        shards: Shards written.
        bytes: Their size.
        seconds: From start to end, loading the module included.
        texts_per_second: ``texts / seconds``.
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
    shards: int
    bytes: int
    seconds: float
    texts_per_second: float

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        texts: Documents read.
        misses: Distinct texts computed, or waiting in the buffer.
        bytes_read: Of the corpus's files, as they lie on disk.
        bytes_total: Of them all; None if one is standard input.
    """

    texts: int
    misses: int
    bytes_read: int
    bytes_total: int | None


ProgressCallback = Callable[[BuildProgress], None]


def build(
    store: FeatureStore,
    corpus: Corpus,
    *,
    module: str = DEFAULT_HANDLE,
    dataset: str | None = None,
    options: BuildOptions | None = None,
    on_progress: ProgressCallback = lambda _progress: None,
) -> BuildReport:
    """Compute what the store lacks of a corpus, and register the corpus as a dataset.

    Args:
        store: An open store.
        corpus: A path, ``{"train": path, …}``, or sources; ``"-"`` is standard input.
        module: The module's handle.
        dataset: Name to register under; None: the first file's name up to its first dot.
        options: Everything else.
        on_progress: Called after each batch of documents.

    Raises:
        CorpusError: at the first document that cannot be read. What was computed is kept.
        ModuleError: if the module cannot be used.
        EncodingError: if a text's features cannot be stored.
        StoreError: if the store cannot be written.
    """
    started = time.monotonic()
    options = options or BuildOptions()
    sources = sources_of(corpus)
    name = default_dataset_name(sources) if dataset is None else checked_dataset_name(dataset)
    reader = CorpusReader(sources, options.corpus)
    # Asked first: a file that is not there is told before the module takes its time to load.
    bytes_total = reader.bytes_total
    pinned, view = open_view(store, module, options)
    with (
        DatasetWriter(store.layout.tmp) as documents,
        MissComputer(store, pinned, view, limits=options.limits) as misses,
    ):
        for batch in reader:
            keys = keys_of_utf8(batch.texts)
            documents.add(keys, batch.labels, batch.splits, batch.ids)
            misses.add(keys, batch)
            num_texts = len(documents)
            on_progress(BuildProgress(num_texts, misses.num_texts, reader.bytes_read, bytes_total))
        misses.finish()
        version, num_unique = documents.finish()
        documents.publish(store.layout.dataset_path(version))
    provenance = _provenance(sources, reader.digests)
    record = DatasetRecord(name, version, len(documents), num_unique, provenance, created_at=0.0)
    report = _report(record, misses, pinned, view, seconds=time.monotonic() - started)
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
    view: FeatureView,
    *,
    seconds: float,
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
        tokens=misses.num_tokens,
        truncated=misses.num_truncated,
        shards=len(misses.published_bytes),
        bytes=sum(misses.published_bytes),
        seconds=round(seconds, 3),
        texts_per_second=round(record.num_documents / max(seconds, 1e-9), 1),
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
    encoded = [utf8_of_text(text) for text in texts]
    keys = keys_of_utf8(encoded)
    if not store.reader(record).contains(keys).all():
        pinned = pin_module_of_view(store.catalog, record)
        batch = DocumentBatch(
            Source("texts", None), encoded, None, None, None, range(1, len(texts) + 1)
        )
        with MissComputer(store, pinned, record.view) as misses:
            misses.add(keys, batch)
            misses.finish()
    return store.get(record.view, texts)


def open_view(
    store: FeatureStore, handle: str, options: BuildOptions
) -> tuple[PinnedModule, FeatureView]:
    """The module of a handle, and its view under these options, made known to the store."""
    pinned = pin_module(store.catalog, handle)
    view = view_of(pinned, options)
    store.catalog.add_view(view, pinned.handle)
    return pinned, view


def view_of(pinned: PinnedModule, options: BuildOptions) -> FeatureView:
    """The view of a module under some options."""
    return pinned.view(
        max_tokens=options.max_tokens, overflow=options.overflow, dtype=options.dtype
    )


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


class MissComputer:
    """Finds the texts that the store lacks and computes them; a context manager.

    Leaving it by an error that is not the store's own, Ctrl-C among them, keeps what was
    computed by then.
    """

    def __init__(
        self,
        store: FeatureStore,
        pinned: PinnedModule,
        view: FeatureView,
        *,
        limits: WriterLimits | None = None,
    ) -> None:
        self._pinned = pinned
        self._view = view
        self._reader = store.reader(view)
        self._writer = store.writer(view, limits=limits)
        self._computer: FeatureComputer | None = None
        self._buffer: dict[bytes, tuple[bytes, str, int]] = {}
        self._num_bytes = 0
        self.num_texts = 0

    def __enter__(self) -> MissComputer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, StoreError):
            self._writer.flush()
        self._reader.save_index()

    @property
    def num_tokens(self) -> int:
        """Rows computed."""
        return 0 if self._computer is None else self._computer.num_tokens

    @property
    def num_truncated(self) -> int:
        """Texts that were cut, of those computed."""
        return 0 if self._computer is None else self._computer.num_truncated

    @property
    def published_bytes(self) -> list[int]:
        """Size of each shard written."""
        return [record.num_bytes for record in self._writer.published]

    def add(self, keys: Keys, batch: DocumentBatch) -> None:
        """Take documents; compute those that are missing once there are enough."""
        pending = self._writer.pending
        missing = np.flatnonzero(~self._reader.contains(keys))
        for position, key in zip(missing.tolist(), map(bytes, keys[missing]), strict=True):
            if key not in self._buffer and key not in pending:
                text = batch.texts[position]
                self._buffer[key] = (text, batch.source.path, batch.lines[position])
                self._num_bytes += len(text)
                self.num_texts += 1
        if len(self._buffer) >= BATCH_TEXTS or self._num_bytes >= BATCH_BYTES:
            self._compute_buffer()

    def finish(self) -> None:
        """Compute what is left and close the open shard; all is acknowledged after."""
        self._compute_buffer()
        self._writer.flush()

    def _compute_buffer(self) -> None:
        if not self._buffer:
            return
        if self._computer is None:
            encoder = self._pinned.load_encoder()
            self._computer = FeatureComputer(encoder, self._writer, self._view)
        for part in _parts(self._buffer):
            self._computer.compute(part)
        self._buffer = {}
        self._num_bytes = 0


def _parts(buffer: Mapping[bytes, tuple[bytes, str, int]]) -> Iterator[MissingTexts]:
    """A buffer in pieces of at most `BATCH_TEXTS` texts and about `BATCH_BYTES` bytes."""
    keys: list[bytes] = []
    num_bytes = 0
    for key, (text, _, _) in buffer.items():
        keys.append(key)
        num_bytes += len(text)
        if len(keys) >= BATCH_TEXTS or num_bytes >= BATCH_BYTES:
            yield _missing_texts(keys, buffer)
            keys, num_bytes = [], 0
    if keys:
        yield _missing_texts(keys, buffer)


def _missing_texts(
    keys: list[bytes], buffer: Mapping[bytes, tuple[bytes, str, int]]
) -> MissingTexts:
    entries = [buffer[key] for key in keys]
    return MissingTexts(
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
        [text for text, _, _ in entries],
        lambda position: f"{entries[position][1]}:{entries[position][2]}",
    )
