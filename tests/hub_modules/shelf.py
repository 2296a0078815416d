"""Tiny modules made at first use and kept for a whole test session."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.hub_modules.kinds import BAD_MODULES, GOOD_MODULES, HubModule, Maker


def shelf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the modules of a whole test session, the same one in all of its processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "hub-modules"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class ModuleShelf:
    """Makes each module once, and a preprocessor that several share once.

    For a session-scoped fixture. Tests must not change what is in the folders. Shelves of one
    folder, in any processes, share what each of them makes.

    Args:
        folder: Where the modules are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, module: HubModule) -> Path:
        """The folder of a module."""
        return self._kept(module.name, module.make)

    def preprocess_of(self, module: HubModule) -> Path:
        """The folder of its preprocessor.

        Raises:
            ValueError: if it has none.
        """
        if module.preprocess is None:
            raise ValueError(f"{module.name} has no preprocessor")
        modules = (*GOOD_MODULES, *BAD_MODULES)
        first = next((each for each in modules if each.preprocess == module.preprocess), module)
        return self._kept(f"{first.name}-preprocess", module.preprocess)

    def _kept(self, name: str, make: Maker) -> Path:
        path = self._folder / name
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not path.exists():
                # Under its own name only when it is whole: a maker may fail.
                part = path.with_name(f"{name}.part")
                shutil.rmtree(part, ignore_errors=True)
                make(part).rename(path)
        return path
