"""Where a run comes from: corpus files → dataset version → view → module → run."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import embedcache
from embedcache.errors import UnknownNameError
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore

_CODE = (("cnn", "*.py"), ("embedcache/stream", "**/*.py"), ("embedcache/store", "**/*.py"))
"""What a training runs through."""


def trace_lineage(
    store: FeatureStore, dataset: Dataset, view: str, *, run: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run was made from, with dates (seconds since 1970) and digests.

    Args:
        store: An open store.
        dataset: The version trained on.
        view: The view's fingerprint.
        run: What is to stand under ``run``.

    Returns:
        JSON values: ``sources``, the corpus's files, each with ``path``, ``split`` and
        ``digest``; ``dataset``; ``builds`` of it under the view; ``view`` with its fields;
        ``module`` with handle and digest, and those of its preprocessor; ``run``.
    """
    catalog = store.catalog
    registered = _registered(store, dataset)
    known = catalog.find_view(view)
    pins = {pin.handle: pin for pin in catalog.module_pins()}
    pin = pins.get(known.handle)
    return {
        "sources": [] if registered is None else [dict(each) for each in registered.sources],
        "dataset": {
            "name": dataset.name,
            "version": dataset.version,
            "documents": len(dataset),
            "distinct_texts": None if registered is None else registered.num_unique,
            "registered_at": None if registered is None else registered.created_at,
        },
        "builds": [
            {
                "at": build.created_at,
                "misses": build.report.get("misses"),
                "seconds": build.report.get("seconds"),
            }
            for build in catalog.builds()
            if (build.version, build.view) == (dataset.version, view)
        ],
        "view": {"fingerprint": view, "fields": json.loads(known.view.to_json())},
        "module": {
            "handle": known.handle,
            "digest": known.view.module_digest,
            "preprocess": known.preprocess,
            "preprocess_digest": known.view.preprocess_digest,
            "pinned_at": None if pin is None else pin.pinned_at,
        },
        "run": dict(run),
    }


def code_version() -> dict[str, str]:
    """The version, and the digest of the source files that a training runs through."""
    root = Path(embedcache.__file__).parents[1]
    digest = blake2b(digest_size=16)
    for folder, pattern in _CODE:
        for path in sorted((root / folder).glob(pattern)):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {"embedcache": embedcache.__version__, "digest": digest.hexdigest()}


def platform_record() -> dict[str, str]:
    """What a run was made on: Python's version, the system, the processor."""
    return {
        "python": sys.version.split()[0],
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
    }


def _registered(store: FeatureStore, dataset: Dataset) -> DatasetRecord | None:
    try:
        return store.catalog.find_dataset(f"{dataset.name}@{dataset.version}")
    except UnknownNameError:
        return None  # deleted meanwhile
