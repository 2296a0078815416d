"""Records what a program does to files, and what of it the device has for certain.

A file's bytes are durable as of its last ``fsync``, a folder's names as of the folder's. The
catalog is taken as of its last commit: how SQLite keeps that promise is its own business.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.call_failures import CALLS

CATALOG = "catalog.sqlite"
_SYNCS = ("fsync", "fdatasync")

Names = dict[int, dict[str, int]]
"""Folder → name in it → what has that name. Files and folders have numbers of our own: the
file system gives those of deleted ones to new ones."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Folders and files by their numbers; the root is 0."""

    names: Names
    contents: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Moment:
    """The state before a call.

    Attributes:
        call: Its name.
        num_told: Lines told by then.
        now: What a program sees.
        durable: What the device has for certain.
        catalog: The catalog as of its last commit; None before the first.
    """

    call: str
    num_told: int
    now: Tree
    durable: Tree
    catalog: bytes | None


class Recorder:
    """Records a moment before each call of `CALLS`, which it wraps in this process.

    Args:
        root: The folder whose content is recorded; what is in it is durable already.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {}
        self._next_number = 0
        self._durable = Tree({}, {})
        self._catalog: bytes | None = None
        self._is_inside = False
        self._num_told = 0
        self.moments: list[Moment] = []
        self._durable = self._look()

    def install(self) -> None:
        """Wrap the calls."""
        for name in CALLS:
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name)))

    def add_told(self) -> None:
        """Count a line, told now: from here on it is a promise."""
        with self._lock:
            self._num_told += 1
            self._add("acknowledgement")

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            # Held during the call as well: what is seen between two calls is consistent.
            with self._lock:
                if self._is_inside:
                    return real(*arguments, **named)
                self._is_inside = True
                try:
                    self._add(name)
                    result = real(*arguments, **named)
                    if name in _SYNCS:
                        self._sync(arguments[0])
                    return result
                finally:
                    self._is_inside = False

        return call

    def _add(self, call: str) -> None:
        now = self._look()
        durable = Tree(dict(self._durable.names), dict(self._durable.contents))
        self._commit()
        self.moments.append(Moment(call, self._num_told, now, durable, self._catalog))

    def _sync(self, descriptor: int) -> None:
        """The content of a file, or the names in a folder, are durable now."""
        found = os.fstat(descriptor)
        now = self._look()
        number = self._numbers.get(found.st_ino)
        if number is None:
            return  # outside, or without a name
        if stat.S_ISDIR(found.st_mode):
            self._durable.names[number] = now.names[number]
        else:
            self._durable.contents[number] = now.contents[number]

    def _look(self) -> Tree:
        """All that is there now; numbers for what is new."""
        tree, inodes = Tree({}, {}), dict[int, int]()
        self._look_into(self._root, self._number(self._root, inodes), tree, inodes)
        self._numbers = inodes
        # What was never forced is an empty folder or file.
        for folder in tree.names:
            self._durable.names.setdefault(folder, {})
        for file in tree.contents:
            self._durable.contents.setdefault(file, b"")
        return tree

    def _look_into(self, folder: Path, number: int, tree: Tree, inodes: dict[int, int]) -> None:
        tree.names[number] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith(CATALOG):
                continue
            with suppress(FileNotFoundError):
                child = self._number(path, inodes)
                tree.names[number][path.name] = child
                if path.is_dir():
                    self._look_into(path, child, tree, inodes)
                else:
                    tree.contents[child] = path.read_bytes()

    def _number(self, path: Path, inodes: dict[int, int]) -> int:
        inode = path.stat().st_ino
        if inode not in inodes:
            if inode not in self._numbers:
                self._numbers[inode] = self._next_number
                self._next_number += 1
            inodes[inode] = self._numbers[inode]
        return inodes[inode]

    def _commit(self) -> None:
        """Take the catalog as of its last commit."""
        for path in self._root.glob(f"*/{CATALOG}"):
            if path.stat().st_size == 0:
                continue
            copy = self._root.parent / "catalog-copy"
            copy.unlink(missing_ok=True)
            source, target = sqlite3.connect(path, timeout=0), sqlite3.connect(copy)
            # Locked: another thread commits just now; what was committed before still holds.
            with suppress(sqlite3.OperationalError):
                source.backup(target)
                target.close()
                self._catalog = copy.read_bytes()
            source.close()
            target.close()
