"""Keeping a run: a folder that is whole and durable, and then a row of the catalog."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cnn.backend import without_tensorflow
from cnn.checkpoints import list_unfinished
from cnn.run import HISTORY_FILE, MODEL_FILE, RUN_FILE, Run
from embedcache.errors import StoreError, StoreReadOnlyError, TrainingError
from embedcache.store.database.records import RunRecord
from embedcache.store.publish import (
    FILE_MODE,
    FOLDER_MODE,
    make_folder,
    mapped_os_errors,
    sync_folder,
)
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.garbage import size_of
from embedcache.store.upkeep.retired import delete_path

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}"
"""It is a folder's name, and the catalog keeps 64 characters."""
_RESERVED = ("last",)
_NAME_CHARACTERS = 24
"""Of the dataset's name that a run's name takes: the catalog keeps 64 of the whole."""


def new_run_name(dataset: str, preset: str) -> str:
    """A name that sorts by time and says what it is: ``20261122-064512-sst2-kim-3f9a``.

    The time is UTC.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    plain = re.sub(r"[^a-z0-9_.]+", "-", dataset.lower())[:_NAME_CHARACTERS].strip("-.")
    return f"{stamp}-{plain or 'dataset'}-{preset}-{secrets.token_hex(2)}"


def check_run_name(store: FeatureStore, name: str) -> None:
    """Raise `TrainingError` if a new run cannot be called so."""
    if not re.fullmatch(_NAME, name) or name in _RESERVED:
        raise TrainingError(
            f"{name!r} cannot name a run; use 1 to 64 letters, digits and . _ + -, and not"
            f" {_RESERVED[0]!r}"
        )
    if any(record.run == name for record in store.catalog.runs()):
        raise TrainingError(
            f"there is a run {name!r} already; choose another name, or delete it with"
            f" `embedcache runs delete {name}`"
        )
    if any(each.run == name for each in list_unfinished(store)):
        raise TrainingError(
            f"an unfinished training is called {name!r}; go on with it with `embedcache train"
            f" --resume {name}`, or delete it with `embedcache runs delete {name}`"
        )


def check_writable(store: FeatureStore) -> None:
    """Raise `StoreReadOnlyError` if a run could not be kept: better before training than after."""
    make_folder(store.layout.tmp)
    if not os.access(store.layout.tmp, os.W_OK):
        raise StoreReadOnlyError(
            f"{store.path}: cannot be written, so that the run could not be kept; change its"
            " permissions, or copy the store to a place that can"
        )


def publish_run(
    store: FeatureStore,
    model: Any,
    *,
    record: Mapping[str, Any],
    details: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    files: Mapping[str, Callable[[Path], object]] | None = None,
) -> Run:
    """Write a run's files, make them durable, and only then register the run.

    A kill at any point leaves at worst a folder that the catalog does not name.

    Args:
        store: The store.
        model: The Keras model, not compiled: an optimizer's state would triple the file.
        record: What ``train --json`` prints.
        details: The rest of ``run.json``; the model's digest is added.
        history: ``history.json``.
        files: Names of further files, each with what writes it to a path.

    Raises:
        StoreError: if the device refuses; `DiskFullError` when it is full.
    """
    target = store.layout.runs / record["run"]
    folder = store.layout.tmp / uuid.uuid4().hex
    try:
        with mapped_os_errors(folder):
            folder.mkdir(mode=FOLDER_MODE)
            with without_tensorflow():
                model.save(folder / MODEL_FILE)
            digest = blake2b((folder / MODEL_FILE).read_bytes(), digest_size=16).hexdigest()
            details = {**details, "model": {"file": MODEL_FILE, "digest": digest}}
            for name, write in (files or {}).items():
                write(folder / name)
            _write_json(folder / HISTORY_FILE, list(history))
            _write_json(folder / RUN_FILE, details | {"record": dict(record)})
            for path in folder.iterdir():
                _make_durable(path)
            sync_folder(folder)
        make_folder(target.parent)
        with mapped_os_errors(target):
            folder.rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _register(store, target, record)
    return Run(store, target, record=record, details=details, model=model)


def delete_run(store: FeatureStore, name: str) -> int:
    """Forget a run and delete its files: the catalog first.

    Args:
        store: An open store.
        name: Its whole name.

    Returns:
        Bytes of its files.

    Raises:
        StoreError: if the store cannot be written.
    """
    folder = store.layout.runs / name
    num_bytes = size_of(folder)
    store.catalog.remove_run(name)
    delete_path(store.layout, folder)
    return num_bytes


def _register(store: FeatureStore, target: Path, record: Mapping[str, Any]) -> None:
    row = RunRecord(
        run=record["run"],
        dataset=record["dataset"],
        version=record["version"],
        view=record["view"],
        record=record,
        created_at=time.time(),
    )
    try:
        store.catalog.add_run(row)
    except StoreError:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, FILE_MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
