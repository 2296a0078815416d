"""What runs hold of forgotten texts: keys among their predictions, and what they learned."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.store.publish import find_files, mapped_os_errors, publish_file
from embedcache.store.store import FeatureStore

PREDICTIONS = "*/predictions.npz"
"""Of a run's folder: arrays of n entries each, one of them ``keys``, (n, 16) uint8."""

Keep = Callable[[Keys], NDArray[np.bool_]]
"""Keys (n, 16) → which of them stay, (n,)."""


def runs_trained_on(store: FeatureStore, versions: Collection[str]) -> list[str]:
    """The runs of some dataset versions, oldest first."""
    return [record.run for record in store.catalog.runs() if record.version in versions]


def forget_predictions(store: FeatureStore, keep: Keep) -> tuple[int, list[Path]]:
    """Take the entries of texts that do not stay out of every run's predictions.

    Returns:
        The files that were written anew, counted; and those that were deleted, because they
        cannot be read and may have the texts.

    Raises:
        StoreError: if the device refuses.
    """
    rewritten, deleted = 0, []
    for path in sorted(find_files(store.layout.runs, PREDICTIONS)):
        arrays = _read(path)
        if arrays is None:
            with mapped_os_errors(path):
                path.unlink()
            deleted.append(path)
            continue
        stays = keep(arrays["keys"])
        if not stays.all():
            buffer = io.BytesIO()
            np.savez(buffer, **{name: array[stays] for name, array in arrays.items()})
            publish_file([buffer.getvalue()], path, tmp_folder=store.layout.tmp)
            rewritten += 1
    return rewritten, deleted


def _read(path: Path) -> dict[str, Any] | None:
    """The arrays of a file; None if it is damaged."""
    try:
        # Opened here: where the file is damaged `np.load` would leave it open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays: dict[str, Any] = dict(found)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    keys = arrays.get("keys")
    if keys is None or keys.ndim != 2 or keys.dtype != np.uint8:
        return None
    return arrays if {len(array) for array in arrays.values()} == {len(keys)} else None
