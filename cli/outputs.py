"""A file that a command writes: whole under its name, or not there at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from embedcache.errors import DiskFullError, OutputError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replaced_file(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 file that takes the place of ``path`` when the block ends without an error.

    It is written beside its target, which is left as it was if anything fails. Its permissions
    are those of any new file, or those of the file that it replaces.

    Raises:
        OutputError: if there is no such folder, or the file cannot be written.
        DiskFullError: if the device is full.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file in it with -o")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}; make it first")
    stage = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with stage.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            file.flush()
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            os.fsync(file.fileno())
        stage.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_SPACE:
            raise DiskFullError(
                f"{target}: no space left on the device; free some, or name another place with"
                " -o; nothing was left behind"
            ) from error
        raise OutputError(
            f"{target}: {reason}; mend that, or name another place with -o"
        ) from error
    finally:
        with suppress(OSError):
            stage.unlink(missing_ok=True)
