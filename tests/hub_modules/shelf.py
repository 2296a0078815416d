"""Tiny modules made at first use and kept for a whole test session."""

from __future__ import annotations

from pathlib import Path

from tests.hub_modules.kinds import HubModule, Maker


class ModuleShelf:
    """Makes each module once, and a preprocessor that several share once.

    For a session-scoped fixture. Tests must not change what is in the folders.

    Args:
        folder: Where the modules are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._preprocessors: dict[Maker, Path] = {}

    def path_of(self, module: HubModule) -> Path:
        """The folder of a module."""
        path = self._folder / module.name
        return path if path.exists() else module.make(path)

    def preprocess_of(self, module: HubModule) -> Path:
        """The folder of its preprocessor.

        Raises:
            ValueError: if it has none.
        """
        if module.preprocess is None:
            raise ValueError(f"{module.name} has no preprocessor")
        if module.preprocess not in self._preprocessors:
            path = module.preprocess(self._folder / f"{module.name}-preprocess")
            self._preprocessors[module.preprocess] = path
        return self._preprocessors[module.preprocess]
