"""The stream's tests fill stores as the store's own tests do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    path = Path(__file__).parents[1] / "store" / "programs.py"
    spec = importlib.util.spec_from_file_location("stream_tests_programs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
