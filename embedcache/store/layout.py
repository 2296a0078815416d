"""Where things lie in a store, and the marker that says that a folder is one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import NotAStoreError, StoreVersionError
from embedcache.store.publish import make_folder, mapped_os_errors, one_line, publish_file

STORE_VERSION = 1
MARKER_NAME = "embedcache.json"
_WHAT = "embedcache store"


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The paths of a store.

    ::

        embedcache.json              what the folder is, and its version
        catalog.sqlite               views, shards, datasets, runs
        shards/VIEW/DIGEST.h5        the features: the truth
        datasets/VERSION/            keys, labels and splits of a registered corpus
        runs/RUN/                    model and metrics of an experiment
        checkpoints/RUN.npz          a training that is not finished
        sweeps/SWEEP/                what a sweep trains, and what of it is done
        index/VIEW.index, .1, .2…    derived: key → shard, row
        leases/VIEW.lock             empty: builders lock bytes of it to share their work
        tmp/                         files being written
        quarantine/                  damaged files that `verify --fix` put aside
    """

    root: Path

    @property
    def marker(self) -> Path:
        """The file that says that the folder is a store."""
        return self.root / MARKER_NAME

    @property
    def catalog(self) -> Path:
        """The SQLite catalog."""
        return self.root / "catalog.sqlite"

    @property
    def tmp(self) -> Path:
        """Files being written; on the same file system as all the others."""
        return self.root / "tmp"

    @property
    def shards(self) -> Path:
        """One folder a view."""
        return self.root / "shards"

    @property
    def datasets(self) -> Path:
        """One folder a dataset version."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    @property
    def checkpoints(self) -> Path:
        """One file a training that is not finished; made when first needed."""
        return self.root / "checkpoints"

    @property
    def sweeps(self) -> Path:
        """One folder a sweep; made when first needed."""
        return self.root / "sweeps"

    @property
    def index(self) -> Path:
        """The derived indexes."""
        return self.root / "index"

    @property
    def leases(self) -> Path:
        """One empty file a view; made when first needed."""
        return self.root / "leases"

    @property
    def quarantine(self) -> Path:
        """Damaged files that were put aside."""
        return self.root / "quarantine"

    def shard_path(self, view: str, digest: str) -> Path:
        """The file of a shard, by its view's fingerprint and its own digest."""
        return self.shards / view / f"{digest}.h5"

    def dataset_path(self, version: str) -> Path:
        """The folder of a dataset version."""
        return self.datasets / version

    def index_path(self, view: str) -> Path:
        """The derived index of a view."""
        return self.index / f"{view}.index"

    def lease_path(self, view: str) -> Path:
        """The file of which builders of a view lock bytes."""
        return self.leases / f"{view}.lock"

    @property
    def is_complete(self) -> bool:
        """Whether the marker and the catalog are there: nothing is left to make.

        Raises:
            StoreError: if the folder cannot be looked into.
        """
        with mapped_os_errors(self.root):
            return self.marker.exists() and self.catalog.exists()

    def create(self) -> None:
        """Make the folders and the marker; fine if they are there.

        Raises:
            NotAStoreError: if the folder holds something else.
            StoreVersionError: if a newer embedcache made it.
            StoreError: if it cannot be written.
        """
        with mapped_os_errors(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise NotAStoreError(f"{self.root}: is a file; name a folder for the store")
            strangers = self._strangers()
            is_store = self.marker.exists()
        if is_store:
            self.check()
        if strangers:
            raise NotAStoreError(
                f"{self.root}: is not a store and not empty (it holds {strangers[0]}); name"
                " an empty or a new folder with --store"
            )
        make_folder(self.root)
        make_folder(self.tmp)
        # The marker comes first: whoever is killed before it, or comes at the same time,
        # leaves or finds nothing but tmp/.
        if not is_store:
            record = {"what": _WHAT, "version": STORE_VERSION}
            publish_file([json.dumps(record).encode()], self.marker, tmp_folder=self.tmp)
        for folder in (self.shards, self.datasets, self.runs, self.index):
            make_folder(folder)

    def _strangers(self) -> list[str]:
        """What a folder without a marker holds besides ``tmp/``."""
        if not self.root.is_dir():
            return []
        names = sorted(entry.name for entry in self.root.iterdir() if entry.name != "tmp")
        # Asked after the names: another process may be making the store now.
        return [] if self.marker.exists() else names

    def check(self) -> None:
        """Raise unless the folder is a store of a version that this code can read.

        Raises:
            NotAStoreError: if there is no store.
            StoreVersionError: if a newer embedcache made it.
        """
        try:
            record = json.loads(self.marker.read_bytes())
            what, version = record["what"], int(record["version"])
        except FileNotFoundError:
            raise NotAStoreError(
                f"{self.root}: no embedcache store there; make one with `embedcache build CORPUS`"
                " or name another with --store"
            ) from None
        except (
            OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise NotAStoreError(
                f"{self.marker}: cannot be read as a store's marker ({one_line(error)}); name"
                " another store with --store"
            ) from error
        if what != _WHAT:
            raise NotAStoreError(
                f"{self.marker}: is not a store's marker; name another store with --store"
            )
        if version > STORE_VERSION:
            raise StoreVersionError(
                f"{self.root}: store version {version}, this embedcache reads up to"
                f" {STORE_VERSION}; upgrade embedcache"
            )
