"""Checkpoints: all that an unfinished training needs to go on, in one file beside the runs.

The file is replaced whole and durably, so a kill at any point leaves the newest or the one
before. A lock beside it says whether its training is alive; like all such locks it ends with
its process.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import TrainingError, UnknownNameError
from embedcache.store.publish import (
    FILE_MODE,
    find_files,
    make_folder,
    mapped_os_errors,
    one_line,
    publish_file,
    sync_folder,
)
from embedcache.store.store import FeatureStore

FORMAT_VERSION = 1
_ABOUT = "about"
_STATE = "state"
_COST_SHARE = 20
"""An epoch's checkpoint waits until writing it costs at most a twentieth of the time: epochs may
take a tenth of a second."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        about: What is trained on what, which never changes; JSON values. ``run`` is its name.
        state: How far it is; JSON values, empty before the first step.
        arrays: Variables, weights, probabilities.
    """

    about: Mapping[str, Any]
    state: Mapping[str, Any]
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A training that has not finished.

    Attributes:
        run: The name that its run will have.
        about: What is trained on what; see `Snapshot`.
        state: How far it is, without the arrays.
        saved_at: When the checkpoint was written, in seconds since 1970.
        num_bytes: Of the file.
        is_running: Whether a process is at it now.
    """

    run: str
    about: Mapping[str, Any]
    state: Mapping[str, Any]
    saved_at: float
    num_bytes: int
    is_running: bool


class CheckpointFile:
    """One training's checkpoint, and the lock that says that it is alive: a context manager.

    Args:
        store: The store.
        run: The run's name.
        every_s: Seconds between two checkpoints within an epoch.
    """

    def __init__(self, store: FeatureStore, run: str, *, every_s: float) -> None:
        self._folder = store.layout.checkpoints
        self._tmp = store.layout.tmp
        self._path = self._folder / f"{run}.npz"
        self._lock_path = self._folder / f"{run}.lock"
        self._run = run
        self._every_s = every_s
        self._descriptor = -1
        self._saved_at = time.monotonic()
        self._cost_s = 0.0

    def __enter__(self) -> CheckpointFile:
        make_folder(self._folder)
        with mapped_os_errors(self._lock_path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._lock_path, flags, FILE_MODE)
        if not _try_lock(self._descriptor):
            os.close(self._descriptor)
            raise TrainingError(
                f"run {self._run} is being trained by another process; let it finish, or end it"
                " and run the same command again"
            )
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing was written through it: what closing it may say does not matter.
        with suppress(OSError):
            os.close(self._descriptor)

    def is_due(self, why: str) -> bool:
        """Whether a checkpoint should be written now.

        Args:
            why: ``"step"``, ``"epoch"`` or ``"interrupt"``, as `cnn.fitting.Hooks.keep` gets it.
        """
        passed_s = time.monotonic() - self._saved_at
        if why == "epoch":
            return passed_s >= min(self._every_s, _COST_SHARE * self._cost_s)
        return why == "interrupt" or passed_s >= self._every_s

    def write(self, snapshot: Snapshot) -> None:
        """Replace what is there, durably.

        Raises:
            StoreError: if the device refuses; what was there stays.
        """
        started = time.monotonic()
        publish_file([_packed(snapshot)], self._path, tmp_folder=self._tmp)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started

    def discard(self) -> None:
        """Delete the checkpoint: its training is done, or cannot go on."""
        _delete(self._path, self._lock_path)


def load_snapshot(store: FeatureStore, name: str) -> Snapshot:
    """The checkpoint of an unfinished training.

    Args:
        store: An open store.
        name: Its name or the beginning of it; ``last`` for the newest that no process is at.

    Raises:
        UnknownNameError: if there is no such training, or several begin so.
        TrainingError: if the file is damaged, or of a newer version.
    """
    path = store.layout.checkpoints / f"{find_unfinished(store, name).run}.npz"
    # Opened here: where the file is damaged `np.load` would leave it open.
    with _mapped_damage(path), path.open("rb") as opened, _load(opened) as file:
        arrays = {key: file[key] for key in file.files if key not in (_ABOUT, _STATE)}
        return Snapshot(_json_of(file[_ABOUT]), _json_of(file[_STATE]), arrays)


def find_unfinished(store: FeatureStore, name: str) -> Unfinished:
    """The unfinished training of that name; see `load_snapshot`.

    Raises:
        UnknownNameError: if there is none, or several begin so.
        TrainingError: if a checkpoint is damaged.
    """
    known = list_unfinished(store)
    found = [each for each in known if each.run == name]
    if name == "last":
        found = [each for each in known if not each.is_running][-1:]
    found = found or [each for each in known if name and each.run.startswith(name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.run for each in known)
    if len(found) > 1:
        raise UnknownNameError(f"several unfinished trainings begin with {name!r}: {names}")
    what = "no unfinished training" if name == "last" else f"no unfinished training {name!r}"
    running = " that no process is at" if name == "last" and known else ""
    there = f"; there are: {names}" if known else "; `embedcache train` begins one"
    raise UnknownNameError(f"{store.path}: {what}{running}{there}")


def list_unfinished(store: FeatureStore) -> list[Unfinished]:
    """The unfinished trainings, the one saved last at the end.

    Raises:
        TrainingError: if a checkpoint is damaged.
    """
    found = []
    for path in find_files(store.layout.checkpoints, "*.npz"):
        # A training that finishes now takes its file away.
        with suppress(FileNotFoundError), _mapped_damage(path):
            with path.open("rb") as opened, _load(opened) as file:
                about, state = _json_of(file[_ABOUT]), _json_of(file[_STATE])
            status = path.stat()
            is_running = _is_locked(path.with_suffix(".lock"))
            found.append(
                Unfinished(path.stem, about, state, status.st_mtime, status.st_size, is_running)
            )
    return sorted(found, key=lambda each: each.saved_at)


def delete_unfinished(store: FeatureStore, run: str) -> None:
    """Delete an unfinished training.

    Args:
        store: An open store.
        run: Its whole name.

    Raises:
        TrainingError: if a process is at it.
        StoreError: if the store cannot be written.
    """
    path = store.layout.checkpoints / f"{run}.npz"
    if _is_locked(path.with_suffix(".lock")):
        raise TrainingError(f"run {run} is being trained by another process; end that first")
    _delete(path, path.with_suffix(".lock"))


def _load(file: BinaryIO) -> Any:
    return np.load(file, allow_pickle=False)


def _delete(*paths: Path) -> None:
    for path in paths:
        with mapped_os_errors(path):
            path.unlink(missing_ok=True)
    with mapped_os_errors(paths[0].parent):
        sync_folder(paths[0].parent)


def _packed(snapshot: Snapshot) -> memoryview:
    buffer = io.BytesIO()
    texts = {_ABOUT: {**snapshot.about, "format": FORMAT_VERSION}, _STATE: snapshot.state}
    members: dict[str, Any] = {
        name: np.frombuffer(json.dumps(dict(record)).encode(), np.uint8)
        for name, record in texts.items()
    }
    members |= snapshot.arrays
    np.savez(buffer, **members)
    return buffer.getbuffer()


def _json_of(array: NDArray[np.uint8]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(array.tobytes())
    version = record.get("format", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise TrainingError(
            f"a checkpoint of version {version}, this embedcache reads up to {FORMAT_VERSION};"
            " upgrade embedcache"
        )
    return record


@contextmanager
def _mapped_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    # Each file of an .npz has a checksum; KeyError: one is missing.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: the checkpoint is damaged ({one_line(error)}); delete this file and train"
            " again with `embedcache train`"
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: then it is for the user not to resume twice.
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)
