"""`embedcache import`: features that another program computed, into a view of the store."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from embedcache.corpus import CorpusOptions, Source, sources_of
from embedcache.errors import ExchangeError
from embedcache.exchange.filling import ViewFiller
from embedcache.exchange.hdf5_reader import Hdf5Features
from embedcache.exchange.npz_reader import open_npz
from embedcache.exchange.sources import FeatureSource, view_of_source
from embedcache.exchange.texts import TextReader, documents_of_keys
from embedcache.modules.handles import IMPORTED_PREFIX
from embedcache.precompute import (
    BuildProgress,
    Corpus,
    ProgressCallback,
    checked_dataset_name,
    default_dataset_name,
)
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView

IMPORT_FORMATS = ("npz", "allennlp", "bilm")
IMPORT_DTYPES = ("float16", "float32")
MAX_NAME_LENGTH = 255
_NPZ_MAGIC = b"PK"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What an import may be told beyond its file, its texts and its name.

    Attributes:
        format: One of `IMPORT_FORMATS`; None: by the first bytes of the file.
        layer: ``"all"``, or the number of one layer from 0; None: all.
        dtype: Storage dtype, one of `IMPORT_DTYPES`; None: that of the file (float16, or
            else float32).
        corpus: How the text files are read.
        limits: When shards close.
    """

    format: str | None = None
    layer: str | None = None
    dtype: str | None = None
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    limits: WriterLimits = field(default_factory=WriterLimits)

    def __post_init__(self) -> None:
        if self.format not in (None, *IMPORT_FORMATS):
            raise ValueError(f"format must be one of {IMPORT_FORMATS}: got {self.format!r}")
        if self.dtype not in (None, *IMPORT_DTYPES):
            raise ValueError(f"dtype must be one of {IMPORT_DTYPES}: got {self.dtype!r}")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did: ``import --json``.

    Attributes:
        dataset: The name that the texts were registered under.
        version: Its version: the digest of its content.
        view: Fingerprint of the view.
        module: ``imported:NAME``.
        texts: Documents.
        unique: Distinct texts among them.
        hits: Distinct texts that the store had before under this view.
        misses: Distinct texts that were written.
        tokens: Rows that were written.
        differing: Documents whose features were not those that are kept of the same text:
            an ELMo that carries its state from batch to batch gives such.
        blank: Blank lines that the file has no features of; they are kept with no rows.
        layers: Layers in a row.
        dim: Width of a row, all layers together.
        dtype: The storage dtype.
        shards: Shards written.
        bytes: Their size.
        seconds: From start to end.
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
    differing: int
    blank: int
    layers: int
    dim: int
    dtype: str
    shards: int
    bytes: int
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def import_features(
    store: FeatureStore,
    path: str | os.PathLike[str],
    *,
    name: str,
    texts: Corpus | None = None,
    dataset: str | None = None,
    options: ImportOptions | None = None,
    on_progress: ProgressCallback = lambda _progress: None,
) -> ImportReport:
    """Take the features in a file into the store, and register its texts as a dataset.

    Nothing is written before the whole of the text file has been compared with what the
    file of features claims; its numbers are checked as they come.

    Args:
        store: An open store.
        path: The file of features.
        name: What stands for their module, which is not known. Features of the same width
            that are imported under one name are one view.
        texts: The text files that they were computed from, as `embedcache.precompute.build`
            takes a corpus; None for an ``.npz`` with keys.
        dataset: Name to register the texts under; None: the first text file's, else the
            file's, up to its first dot.
        options: Everything else.
        on_progress: Called after each block of documents.

    Raises:
        ExchangeError: if the file cannot be read, or does not fit the texts.
        CorpusError: if the texts cannot be read.
        StoreError: if the store cannot be written.
    """
    started = time.monotonic()
    options = options or ImportOptions()
    handle = IMPORTED_PREFIX + checked_import_name(name)
    file = os.fspath(path)
    files = [] if texts is None else sources_of(texts)
    named = files or [Source(file, None)]
    dataset = default_dataset_name(named) if dataset is None else checked_dataset_name(dataset)
    with open_source(file, options) as source, DatasetWriter(store.layout.tmp) as writer:
        reader = TextReader(source, files, options.corpus) if files else None
        documents = reader.read(writer) if reader else documents_of_keys(source, writer)
        view = view_of_source(source, name, options.dtype)
        store.catalog.add_view(view, handle)
        with ViewFiller(store, view, source, documents, limits=options.limits) as filler:
            num_bytes = os.path.getsize(file)
            filler.fill(
                lambda done, share: on_progress(
                    BuildProgress(done, filler.misses, 0, int(share * num_bytes), num_bytes)
                )
            )
        version, num_unique = writer.finish()
        writer.publish(store.layout.dataset_path(version))
    sources = _provenance(named, reader.digests if reader else {})
    record = DatasetRecord(dataset, version, len(documents), num_unique, sources, created_at=0.0)
    report = _report(record, handle, view, filler, num_blank=documents.num_blank, started=started)
    store.catalog.add_dataset(record, view=view.fingerprint, report=report.to_record())
    return report


def _provenance(sources: Sequence[Source], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files with their splits and digests, as the catalog keeps them."""
    return [
        {"path": source.path, "split": source.split, "digest": digests.get(source.path, "")}
        for source in sources
    ]


def _report(
    record: DatasetRecord,
    handle: str,
    view: FeatureView,
    filler: ViewFiller,
    *,
    num_blank: int,
    started: float,
) -> ImportReport:
    return ImportReport(
        dataset=record.name,
        version=record.version,
        view=view.fingerprint,
        module=handle,
        texts=record.num_documents,
        unique=record.num_unique,
        hits=record.num_unique - filler.misses,
        misses=filler.misses,
        tokens=filler.tokens,
        differing=filler.differing,
        blank=num_blank,
        layers=view.num_layers,
        dim=view.dim,
        dtype=view.dtype,
        shards=len(filler.published_bytes),
        bytes=sum(filler.published_bytes),
        seconds=round(time.monotonic() - started, 3),
    )


def open_source(path: str, options: ImportOptions) -> FeatureSource:
    """Open a file of features.

    Raises:
        ExchangeError: if it is not of a format that can be imported.
    """
    chosen = options.format or _format_of_content(path)
    if chosen == "npz":
        return open_npz(path, layer=options.layer)
    blanks_left_out = {"allennlp": True, "bilm": False}.get(chosen)
    return Hdf5Features(path, layer=options.layer, blanks_left_out=blanks_left_out)


def _format_of_content(path: str) -> str:
    """``"npz"`` or ``"hdf5"``, by the first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_HDF5_MAGIC))
    except OSError as error:
        raise ExchangeError(f"{path}: {error.strerror or error}; check the path") from error
    if head.startswith(_NPZ_MAGIC):
        return "npz"
    if head == _HDF5_MAGIC:
        return "hdf5"
    raise ExchangeError(
        f"{path}: is neither .npz nor HDF5; give features of numpy.savez, or of AllenNLP's or"
        " bilm-tf's HDF5"
    )


def checked_import_name(name: str) -> str:
    """The name, if features may be imported under it.

    Raises:
        ExchangeError: if it is empty, too long, or has a character that is not printable.
    """
    if not name.isprintable() or name.strip() != name or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ExchangeError(
            f"{name!r} cannot name imported features; use 1 to {MAX_NAME_LENGTH} printable"
            " characters with --as"
        )
    return name
