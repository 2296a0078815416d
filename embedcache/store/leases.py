"""Leases: which builder is at which texts, so that many share the work on one corpus.

A lease is an exclusive advisory lock on one byte of an empty file. It ends with the process
that holds it, however that ends: there are no time-outs, nothing to clean up, and no clock. A
lease saves work and does no more: what is stored is right without it, and a builder that
cannot have one computes texts that another may compute as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import StoreError
from embedcache.keys import Keys
from embedcache.store.publish import FILE_MODE, make_folder

_REFUSED = {errno.EACCES, errno.EAGAIN}
_TO_THE_END = 0
"""As the length of a lock: all that follows."""


class LeaseNames:
    """Says which lease each document of a corpus belongs to: about 256 neighbours share one.

    A lease begins at a document whose key is an *anchor*, which is one that begins with a zero
    byte, and is named by that key; the first lease by the key of the first document. So it is
    the documents that tell where leases begin, not their places in a file, nor how a reader
    cuts it into batches: two corpora that share a run of documents share its leases. An anchor
    counts the first time only: a text that stands on every tenth line must not name them all.
    """

    def __init__(self) -> None:
        self._name: int | None = None
        self._anchors: set[int] = set()

    def next_names(self, keys: Keys) -> NDArray[np.int64]:
        """The lease of each of the next documents of the corpus, (n,), from 0 to 2^62 - 1.

        Args:
            keys: Of all of them, in the order of the corpus, (n, 16).
        """
        names = np.empty(len(keys), np.int64)
        starts = np.flatnonzero(keys[:, 0] == 0).tolist()
        if self._name is None and len(keys):
            starts.insert(0, 0)
        first = 0
        for start in starts:
            name = int.from_bytes(keys[start, -8:].tobytes(), "little") >> 2
            if name in self._anchors:
                continue
            self._anchors.add(name)
            names[first:start] = self._name or 0
            self._name, first = name, start
        names[first:] = self._name or 0
        return names


class WorkLeases:
    """The leases of one builder on the texts of one view. One thread; never across a fork.

    Constructing it opens nothing. On Linux the locks belong to this object, so that two
    builders in one process exclude each other too; elsewhere they belong to the process. Where
    the file system has no locks, or the file cannot be opened, every lease is granted.

    Args:
        path: The file whose bytes are locked; made where it is missing, and never written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._works = True
        self._held: Counter[int] = Counter()

    def try_take(self, name: int) -> bool:
        """Take a lease, unless another builder has it.

        One that is held already is held once more: it ends with as many calls of `release`.
        """
        if not self._held[name] and not self._lock(name, wait=False):
            return False
        self._held[name] += 1
        return True

    def wait_for(self, name: int) -> None:
        """Take a lease as soon as no other builder has it. Signals interrupt the waiting.

        None may be held: two that wait for each other would wait for ever.

        Raises:
            RuntimeError: if one is held.
        """
        if self._held:
            raise RuntimeError(f"{len(self._held)} leases are held while waiting for another")
        self._lock(name, wait=True)
        self._held[name] += 1

    def release(self, name: int) -> None:
        """Give up a lease that is held."""
        self._held[name] -= 1
        if self._held[name] <= 0:
            del self._held[name]
            self._unlock(name, 1)

    def close(self) -> None:
        """Give up all; fine if it is done."""
        self._held.clear()
        if self._file is not None:
            # A child that this process forked, for whatever reason, holds the file open, and
            # with it the locks: they are given up by name.
            self._unlock(0, _TO_THE_END)
            file, self._file = self._file, None
            os.close(file)

    def _lock(self, name: int, *, wait: bool) -> bool:
        """Lock one byte; False if another builder has it."""
        if not self._works:
            return True
        try:
            if self._file is None:
                make_folder(self._path.parent)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._file = os.open(self._path, flags, FILE_MODE)
            _set_lock(self._file, fcntl.F_WRLCK, name, 1, wait=wait)
        except (OSError, StoreError) as error:
            # "The file cannot be opened" may be EACCES too.
            if self._file is not None and getattr(error, "errno", None) in _REFUSED:
                return False
            # ENOLCK, EOPNOTSUPP and their kin.
            self._works = False
        return True

    def _unlock(self, name: int, num_bytes: int) -> None:
        if self._works and self._file is not None:
            with suppress(OSError):
                _set_lock(self._file, fcntl.F_UNLCK, name, num_bytes, wait=False)


def _set_lock(file: int, kind: int, start: int, num_bytes: int, *, wait: bool) -> None:
    """Set or drop an exclusive lock on some bytes of a file.

    Raises:
        OSError: EACCES or EAGAIN if it is locked and this is not to wait.
    """
    if hasattr(fcntl, "F_OFD_SETLK"):
        # Of the open file description: other descriptors of the same process are others, and
        # closing one of them drops nothing. See fcntl(2), struct flock.
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        lock = struct.pack("@hhqqi", kind, os.SEEK_SET, start, num_bytes, 0)
        fcntl.fcntl(file, command, lock)
    else:
        exclusive = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        operation = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else exclusive
        fcntl.lockf(file, operation, num_bytes, start, os.SEEK_SET)
