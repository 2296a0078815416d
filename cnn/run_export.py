"""A run's files, whole, outside the store."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from cnn.run import Run
from embedcache.errors import TrainingError
from embedcache.store.publish import mapped_os_errors


def export_run(run: Run, folder: Path) -> Path:
    """Copy a run's folder; it appears whole or not at all.

    Args:
        run: A finished run.
        folder: Where it goes, as ``FOLDER/NAME``; made if it is not there.

    Returns:
        The copy.

    Raises:
        TrainingError: if there is something of that name already.
        StoreError: if it cannot be written.
    """
    target = folder / run.name
    if target.exists():
        raise TrainingError(f"{target}: is there already; name another folder with -o, or move it")
    part = folder / f".{run.name}.{uuid.uuid4().hex[:8]}"
    try:
        with mapped_os_errors(target):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(run.path, part)
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
