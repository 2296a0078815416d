"""A module cache of its own for every test here, and a real server of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedcache.modules.cache import ModuleCache
from tests.embedcache.modules.module_server import ModuleServer, serving


@pytest.fixture(autouse=True)
def module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleCache:
    """An empty cache, which is also the default one of the test."""
    path = tmp_path / "modules"
    monkeypatch.setenv("EMBEDCACHE_MODULES", str(path))
    return ModuleCache(path)


@pytest.fixture(scope="session")
def tiny_module(make_module: Callable[..., Path]) -> Path:
    """A small real SavedModel. Not to be changed."""
    return make_module(dim=2)


@pytest.fixture
def module_server(tiny_module: Path) -> Iterator[ModuleServer]:
    with serving(tiny_module) as server:
        yield server
