"""The tiny modules, made and loaded once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub_modules.calling import load_path, named
from tests.hub_modules.kinds import HubModule
from tests.hub_modules.saving import quiet_tensorflow
from tests.hub_modules.shelf import ModuleShelf, shelf_folder


@pytest.fixture(scope="session")
def tf() -> Any:
    """The module ``tensorflow``."""
    with quiet_tensorflow() as tensorflow:
        return tensorflow


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> ModuleShelf:
    return ModuleShelf(shelf_folder(tmp_path_factory))


@pytest.fixture(scope="session")
def load(shelf: ModuleShelf) -> Callable[[str], Any]:
    """Loads the module of a name."""
    return _loader(shelf.path_of)


@pytest.fixture(scope="session")
def load_preprocess(shelf: ModuleShelf) -> Callable[[str], Any]:
    """Loads the preprocessor of the module of a name."""
    return _loader(shelf.preprocess_of)


def _loader(place: Callable[[HubModule], Path]) -> Callable[[str], Any]:
    loaded: dict[Path, Any] = {}

    def load_named(name: str) -> Any:
        path = place(named(name))
        if path not in loaded:
            loaded[path] = load_path(path)
        return loaded[path]

    return load_named
