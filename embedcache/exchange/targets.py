"""What an export writes to: a file or folder that appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from embedcache.errors import DiskFullError, ExchangeError

FOLDER_MARKS = ("dataset_info.json", "state.json")
"""What a folder of Hugging Face ``datasets`` holds: no other folder is ever replaced."""

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def mapped_target_errors(target: Path) -> Iterator[None]:
    """Turn what the file system raises into one line that names the target."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise disk_full(target) from error
        raise ExchangeError(
            f"{target}: {error.strerror or error}; mend that, or name another place with --to"
        ) from error


def disk_full(target: Path) -> DiskFullError:
    """The error of a full disk; what was written of the target is gone by then."""
    return DiskFullError(
        f"{target}: no space left on the device; free some, or name another place with --to;"
        " nothing was left behind"
    )


def require_target(target: Path, *, force: bool, is_folder: bool) -> None:
    """Raise unless an export may write there; asked before the long work begins.

    Raises:
        ExchangeError: if something is there that is not to be replaced, or the folder that
            the target shall lie in is missing.
    """
    with mapped_target_errors(target):
        if not target.parent.is_dir():
            raise ExchangeError(f"{target}: there is no folder {target.parent}; make it first")
        if not os.path.lexists(target):
            return
        if not force:
            raise ExchangeError(
                f"{target}: is there already; name another place with --to, or replace it with"
                " --force"
            )
        if target.is_dir() and not is_folder:
            raise ExchangeError(f"{target}: is a folder; name a file with --to")
        if is_folder and not _is_replaceable(target):
            raise ExchangeError(
                f"{target}: is not a folder of Hugging Face datasets, so --force does not replace"
                " it; name another place with --to"
            )


def _is_replaceable(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = set(os.listdir(folder))
    return not names or names >= set(FOLDER_MARKS)


@contextmanager
def staged_file(target: Path, *, force: bool) -> Iterator[Path]:
    """The path of a new file beside the target, which becomes the target when the block ends.

    Raises:
        ExchangeError: if the target came to be in between, or the device refuses.
        DiskFullError: if the device is full. Nothing is left behind either way.
    """
    stage = _stage_beside(target)
    try:
        yield stage
        with mapped_target_errors(target):
            _sync(stage)
            require_target(target, force=force, is_folder=False)
            os.replace(stage, target)
            _sync(target.parent)
    finally:
        with suppress(OSError):
            stage.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """The path of a new folder beside the target, which becomes the target when the block ends.

    Raises:
        ExchangeError: if the target came to be in between, or the device refuses.
        DiskFullError: if the device is full. Nothing is left behind either way.
    """
    stage, old = _stage_beside(target), _stage_beside(target)
    try:
        with mapped_target_errors(target):
            stage.mkdir(mode=_FOLDER_MODE)
        yield stage
        with mapped_target_errors(target):
            for path in (*stage.iterdir(), stage):
                _sync(path)
            require_target(target, force=force, is_folder=True)
            if target.exists():
                target.rename(old)
            stage.rename(target)
            _sync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        for leftover in (stage, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def open_new(path: Path, *, target: Path) -> Iterator[IO[bytes]]:
    """A new file for its owner alone; errors of the device name the target.

    Whatever library writes to it: the error of a full disk is Python's own then.
    """
    with mapped_target_errors(target):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        with os.fdopen(descriptor, "w+b") as file:
            yield file


def _stage_beside(target: Path) -> Path:
    # Not made of the target's own name, which may be as long as a name can be.
    return target.with_name(f".{uuid.uuid4().hex}.embedcache-export")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
