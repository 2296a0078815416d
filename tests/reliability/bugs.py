"""Bugs that are seeded on purpose, to see that a harness reports them.

They change the process that calls `seed_bug`, a child of a harness; nothing of the product
knows them.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.store.database.catalog import Catalog
from embedcache.store.reader import ViewReader
from embedcache.store.shards import shard as shard_module

_WRITES = ("write", "pwrite", "writev", "pwritev")
_RENAMES = ("replace", "rename", "link")
_WINDOW_S = 0.004
"""How long a seeded bug leaves the store as it must not be."""


def seed_bug(name: str) -> None:
    """Change this process; nothing for an empty name, or one that the harness itself has."""
    _BUGS.get(name, lambda: None)()


def _wrap(names: tuple[str, ...], wrapper: Callable[[Callable[..., Any]], Any]) -> None:
    for name in names:
        setattr(os, name, wrapper(getattr(os, name)))


def _swallow_errors() -> None:
    """A write or a renaming that fails is taken for one that was done."""

    def wrapper(real: Callable[..., Any]) -> Any:
        def call(first: Any, second: Any, *arguments: Any, **named: Any) -> Any:
            try:
                return real(first, second, *arguments, **named)
            except OSError:
                return _num_bytes(second) if isinstance(first, int) else None

        return call

    _wrap((*_WRITES, *_RENAMES), wrapper)


def _trust_writes() -> None:
    """A write that took less than it was given is taken for a whole one."""

    def wrapper(real: Callable[..., Any]) -> Any:
        def call(descriptor: int, given: Any, *arguments: Any) -> int:
            real(descriptor, given, *arguments)
            return _num_bytes(given)

        return call

    _wrap(_WRITES, wrapper)


def _num_bytes(given: Any) -> int:
    parts = given if isinstance(given, list | tuple) else [given]
    return sum(memoryview(part).nbytes for part in parts)


def _skip_fsync(*, of_folders: bool) -> None:
    def wrapper(real: Callable[..., Any]) -> Any:
        def call(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) != of_folders:
                real(descriptor)

        return call

    _wrap(("fsync", "fdatasync"), wrapper)


def _catalog_before_rename() -> None:
    """A shard gets its name only after the catalog has its row, in two pieces."""
    waiting: list[tuple[bytes, Path]] = []

    def wrapper(real: Callable[..., Any]) -> Any:
        def call(source: Any, target: Any, **named: Any) -> None:
            if Path(target).suffix == ".h5":
                waiting.append((Path(source).read_bytes(), Path(target)))
            else:
                real(source, target, **named)

        return call

    _wrap(_RENAMES, wrapper)
    add_shard = Catalog.add_shard

    def add_before(self: Catalog, *arguments: Any, **named: Any) -> Any:
        added = add_shard(self, *arguments, **named)
        while waiting:
            image, target = waiting.pop()
            with target.open("wb", buffering=0) as file:
                for half in (image[: len(image) // 2], image[len(image) // 2 :]):
                    time.sleep(_WINDOW_S)
                    file.write(half)
        return added

    Catalog.add_shard = add_before  # type: ignore[method-assign]


def _skip_checksums() -> None:
    shard_module.Shard._verify_block = lambda *_: None  # type: ignore[method-assign]


def _believe_index() -> None:
    """The index takes the place where a key would stand for one where it stands."""

    def contains(_self: ViewReader, keys: Any) -> Any:
        return np.ones(len(keys), np.bool_)

    ViewReader.contains = contains  # type: ignore[method-assign]


def _forget_what_is_there() -> None:
    """A build computes texts that the store has."""

    def contains(_self: ViewReader, keys: Any) -> Any:
        return np.zeros(len(keys), np.bool_)

    ViewReader.contains = contains  # type: ignore[method-assign]


_BUGS: dict[str, Callable[[], None]] = {
    "swallow-errors": _swallow_errors,
    "trust-writes": _trust_writes,
    "no-file-fsync": lambda: _skip_fsync(of_folders=False),
    "no-folder-fsync": lambda: _skip_fsync(of_folders=True),
    "catalog-before-rename": _catalog_before_rename,
    "no-checksums": _skip_checksums,
    "believe-index": _believe_index,
    "forget-what-is-there": _forget_what_is_there,
}
