"""FeatureStore: the one door to features at rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import KeyNotFoundError, StoreError, UnknownNameError
from embedcache.keys import keys_of_texts
from embedcache.ragged import RaggedArray
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import DatasetRecord, ShardRecord, ViewRecord
from embedcache.store.dataset import Dataset, load_dataset
from embedcache.store.layout import StoreLayout
from embedcache.store.reader import ViewReader
from embedcache.store.refs import FeatureRefs
from embedcache.store.upkeep.adopt import adopt_shards
from embedcache.store.writer import ShardWriter, WriterLimits
from embedcache.view import FeatureView

_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p.remote", "fuse.sshfs")


class FeatureStore:
    """Features, datasets and runs under one folder. A context manager.

    Constructing it opens nothing; `open_store` does. Pickling keeps the path and drops
    what is open. One process may use it from several threads for reading; a forked child
    must open its own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.layout = StoreLayout(self.path)
        self.catalog = Catalog(self.layout.catalog)
        self._readers: dict[str, ViewReader] = {}
        self._process = os.getpid()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.path,)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r})"

    def close(self) -> None:
        """Drop what is open; arrays that were handed out stay good."""
        self._readers.clear()
        self.catalog.close()

    def reader(self, view: str | FeatureView | ViewRecord) -> ViewReader:
        """The reader of a view, covering every shard catalogued by now.

        Args:
            view: A view, or its fingerprint or the beginning of it.

        Raises:
            UnknownNameError: if the store does not know the view.
            CorruptShardError: if a shard that has to be read for its keys is damaged.
        """
        if self._process != os.getpid():
            raise StoreError(
                f"{self.path}: opened before a fork; open the store again in the child process"
            )
        if isinstance(view, str):
            view = self.catalog.find_view(view)
        known = view.view if isinstance(view, ViewRecord) else view
        fingerprint = known.fingerprint
        catalog = self.catalog

        def live_shards() -> list[str]:
            return [record.digest for record in catalog.shards(fingerprint)]

        reader = self._readers.get(fingerprint)
        if reader is None:
            made = ViewReader(self.layout, known, live_shards=live_shards)
            reader = self._readers.setdefault(fingerprint, made)
        reader.refresh(live_shards())
        return reader

    def writer(self, view: FeatureView, *, limits: WriterLimits | None = None) -> ShardWriter:
        """A writer of a view. The view must be in the catalog before the first `flush`."""
        reader = self.reader(view)

        def publish(record: ShardRecord) -> None:
            reader.add_shard(record.digest)
            reader.save_large_index()

        return ShardWriter(
            self.layout,
            self.catalog,
            view,
            limits=limits,
            on_publish=publish,
        )

    def contains(self, view: str | FeatureView, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts have features under a view, (n,) bool."""
        return self.reader(view).contains(keys_of_texts(texts))

    def get(self, view: str | FeatureView, texts: Sequence[str]) -> RaggedArray:
        """The features of texts under a view.

        Args:
            view: A view, or its fingerprint or the beginning of it.
            texts: n texts, in any order, with repetitions or not.

        Returns:
            n matrices of shape (num_tokens, dim) in the order of the texts: float16 or float32
            as they are stored, bfloat16 and int8 as float32. The arrays are the caller's.

        Raises:
            KeyNotFoundError: if a text has no features; the message names the first one.
            UnknownNameError: if the store does not know the view.
            CorruptShardError: if the bytes are not what was written.
        """
        refs, reader = self.locate(view, texts)
        return reader.gather(refs)

    def locate(
        self, view: str | FeatureView, texts: Sequence[str]
    ) -> tuple[FeatureRefs, ViewReader]:
        """Where the features of texts lie, and the reader to gather them with.

        Raises:
            KeyNotFoundError: if a text has no features.
        """
        reader = self.reader(view)
        refs = reader.locate(keys_of_texts(texts))
        missing = np.flatnonzero(refs.shards < 0)
        if len(missing):
            raise KeyNotFoundError(
                f"{len(missing)} of {len(texts)} texts have no features under view"
                f" {reader.view.fingerprint[:12]} (the first: text {missing[0] + 1});"
                " `embedcache build` or `embedcache.embed` computes them"
            )
        return refs, reader

    def load_dataset(self, name: str | None = None) -> Dataset:
        """A registered dataset: ``NAME`` (its newest version), ``NAME@VERSION``, None the newest.

        Raises:
            UnknownNameError: if there is no such dataset.
            CorruptShardError: if its files are damaged.
        """
        record = self.catalog.find_dataset(name)
        return self.open_dataset(record)

    def open_dataset(self, record: DatasetRecord) -> Dataset:
        """The dataset of a catalog record."""
        return load_dataset(record.name, record.version, self.layout.dataset_path(record.version))

    def view_of_dataset(self, dataset: Dataset, view: str | None = None) -> ViewRecord:
        """The view named, or the one that the dataset was last built under.

        Raises:
            UnknownNameError: if there is none.
        """
        return self.catalog.find_view(view or self.catalog.newest_view_of(dataset.version) or "")

    def record_use(self, view: str, version: str) -> None:
        """Keep that a dataset version's features under a view are used now; never an error.

        Args:
            view: The view's fingerprint.
            version: The dataset's whole version.
        """
        self.catalog.record_use(view, version)

    def newest_view(self) -> str:
        """Fingerprint of the view that was last built, or else last made.

        Raises:
            UnknownNameError: if the store has no views.
        """
        datasets, views = self.catalog.datasets(), self.catalog.views()
        built = self.catalog.newest_view_of(datasets[-1].version) if datasets else None
        if built is None and not views:
            raise UnknownNameError(
                f"{self.path}: holds no features yet; `embedcache build CORPUS` makes some"
            )
        return built or views[-1].fingerprint

    def stats(self) -> dict[str, Any]:
        """What the store holds: ``stats --json``."""
        views: list[dict[str, Any]] = []
        for record in self.catalog.views():
            shards = self.catalog.shards(record.fingerprint)
            views.append(
                {
                    "fingerprint": record.fingerprint,
                    "module": record.handle,
                    "texts": sum(shard.num_texts for shard in shards),
                    "tokens": sum(shard.num_tokens for shard in shards),
                    "bytes": sum(shard.num_bytes for shard in shards),
                    "shards": len(shards),
                }
            )
        counts = self.catalog.count()
        num_bytes = sum(int(view["bytes"]) for view in views)
        return {"path": str(self.path), "views": views, **counts, "bytes": num_bytes}


def open_store(path: str | os.PathLike[str], *, create: bool = True) -> FeatureStore:
    """Open a store, making it if it is not there.

    A catalog that was lost is made anew from the shards, each of which is read whole then;
    the names of datasets and runs, and the handles of modules, are lost with it.

    Args:
        path: The store's folder.
        create: False: fail where there is no store instead of making one.

    Raises:
        NotAStoreError: if the folder holds something else, or nothing and ``create`` is False.
        StoreVersionError: if a newer embedcache made it.
        StoreReadOnlyError: if it has to be made and the place cannot be written.
    """
    store = FeatureStore(path)
    _refuse_network_file_system(store.path)
    if create and not store.layout.is_complete:
        store.layout.create()
    store.layout.check()
    if create:
        # Also where the catalog is there: it may be an old one, or empty after a kill.
        is_new = store.catalog.create()
        if is_new:
            adopt_shards(store.layout, store.catalog)
    store.catalog.check()
    return store


def _refuse_network_file_system(path: Path) -> None:
    """SQLite's locks do not work over a network: two builders would corrupt the catalog."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    path = Path(os.path.realpath(path))
    best = ("", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best[0]):
            best = (point, fields[2])
    if best[1] in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{path}: lies on a network file system ({best[1]}), where SQLite's locks do not hold;"
            " put the store on a local disk"
        )
