"""Which keys are in use: those of datasets, and of builds that are at work."""

from __future__ import annotations

import mmap
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedcache.keys import KEY_BYTES, Keys
from embedcache.store.database.records import UseRecord
from embedcache.store.dataset import load_dataset
from embedcache.store.publish import find_files, mapped_os_errors
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.membership import KeySource, RankedKeys

_HEADER_BYTES = 128
_KEYS_FILE = "keys.npy"


@dataclass(frozen=True, slots=True)
class References:
    """What keeps texts in a store.

    Attributes:
        uses: The registered datasets' features under the views that they were built or read
            under, the longest unused first. Their place here is their rank.
        datasets: The keys of each registered version.
        protected: Keys that count as used under every view: of builds at work, and of dataset
            folders that the catalog does not name.
        unregistered: Those folders.
    """

    uses: tuple[UseRecord, ...]
    datasets: dict[str, RankedKeys]
    protected: tuple[RankedKeys, ...]
    unregistered: tuple[Path, ...]

    def keys_of_view(self, view: str) -> list[RankedKeys]:
        """The keys that are used under a view, with their ranks."""
        found = []
        for rank, use in enumerate(self.uses):
            if use.view == view:
                keys = self.datasets[use.version]
                found.append(RankedKeys(keys.open, keys.num_keys, rank))
        return found + list(self.protected)


def find_references(
    store: FeatureStore, known: Mapping[str, RankedKeys] | None = None
) -> References:
    """What keeps texts in the store now.

    Args:
        store: An open store.
        known: Versions that have been found before, and are whole.

    Raises:
        CorruptShardError: if a dataset is missing or damaged: nobody knows what it uses.
        StoreError: if the catalog cannot be used.
    """
    # A build's keys go from tmp/ to datasets/ to the catalog: looked for in this order, none
    # is missed. What is mapped stays good when its folder is renamed.
    at_work = [_mapped_if_there(path) for path in find_files(store.layout.tmp, f"*/{_KEYS_FILE}")]
    folders = [path for path in find_files(store.layout.datasets, "*") if path.is_dir()]
    versions = {record.version for record in store.catalog.datasets()}
    retired = {record.digest for record in store.catalog.retired()}
    unregistered = [path for path in folders if path.name not in versions | retired]
    uses = _uses(store, versions)
    datasets = {version: keys for version, keys in (known or {}).items() if version in versions}
    for version in sorted(versions - set(datasets)):
        folder = store.layout.dataset_path(version)
        num_keys = len(load_dataset("", version, folder))
        datasets[version] = RankedKeys(_opener(folder / _KEYS_FILE), num_keys, 0)
    at_work += [keys_of_folder(folder) for folder in unregistered]
    protected = [
        RankedKeys(lambda keys=keys: keys, len(keys), len(uses))  # type: ignore[misc]
        for keys in at_work
        if len(keys)
    ]
    return References(tuple(uses), datasets, tuple(protected), tuple(unregistered))


def _uses(store: FeatureStore, versions: set[str]) -> list[UseRecord]:
    """Registered versions under views, by the time of their last use or build."""
    times: dict[tuple[str, str], float] = defaultdict(float)
    records: Sequence[tuple[str, str, float]] = [
        *((use.view, use.version, use.used_at) for use in store.catalog.uses()),
        *((build.view, build.version, build.created_at) for build in store.catalog.builds()),
    ]
    for view, version, when in records:
        if version in versions:
            times[view, version] = max(times[view, version], when)
    found = [UseRecord(view, version, when) for (view, version), when in times.items()]
    return sorted(found, key=lambda use: (use.used_at, use.view, use.version))


def _opener(path: Path) -> KeySource:
    return lambda: _mapped(path)


def keys_of_folder(folder: Path) -> Keys:
    """The keys of a dataset's folder, which may be damaged or half written.

    Raises:
        StoreError: if they cannot be read.
    """
    return _mapped_if_there(folder / _KEYS_FILE)


def _mapped_if_there(path: Path) -> Keys:
    """As `_mapped`; no keys where a build has just given up."""
    return _mapped(path) if path.exists() else np.zeros((0, KEY_BYTES), np.uint8)


def _mapped(path: Path) -> Keys:
    """The keys in a column's file, which may still be written.

    Raises:
        StoreError: if it cannot be read: what it uses must not be taken for unused.
    """
    with mapped_os_errors(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        count = max(0, size - _HEADER_BYTES) // KEY_BYTES
        if count == 0:
            return np.zeros((0, KEY_BYTES), np.uint8)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return np.ndarray((count, KEY_BYTES), np.uint8, buffer=mapped, offset=_HEADER_BYTES)
