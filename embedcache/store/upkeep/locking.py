"""One maintenance at a time: an advisory lock on the store's marker.

Builders and readers need no such lock: what they may meet is settled by the catalog's
transactions. But two that rewrite the same shards would both write all of them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from embedcache.errors import StoreLockedError
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import mapped_os_errors


@contextmanager
def maintenance_lock(layout: StoreLayout) -> Iterator[None]:
    """Hold the store's maintenance lock. It ends with the process, however that ends.

    Raises:
        StoreLockedError: if another process holds it.
        StoreError: if there is no store.
    """
    with mapped_os_errors(layout.marker):
        # For reading only: it never changes, and needs no file of its own.
        descriptor = os.open(layout.marker, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(
                f"{layout.root}: another process compacts, collects or repairs this store; let it"
                " finish, then run the same command again"
            ) from None
        except OSError:
            # A file system without locks: then it is for the user not to run two at once,
            # which costs work and loses nothing.
            pass
        yield
    finally:
        # Nothing was written through it: what closing it may say does not matter.
        with suppress(OSError):
            os.close(descriptor)
