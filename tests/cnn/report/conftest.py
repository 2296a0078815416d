"""The checker of pages, and runs on a real corpus with real texts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import embedcache
from cnn import Run, TrainConfig, train

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def require_whole_page() -> Callable[[str], Any]:
    """The page, parsed, once nothing is wrong with it."""
    path = Path(__file__).with_name("html_checks.py")
    spec = importlib.util.spec_from_file_location("html_checks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checker: Callable[[str], Any] = module.require_whole_page
    return checker


@dataclass(frozen=True, slots=True)
class Helpdesk:
    """A store with a corpus of messages and a run on it; tests add nothing but runs.

    Attributes:
        store: Open.
        folder: Where the corpus's files lie.
        texts: Of the test split.
        run: Trained for one epoch: wrong about some.
    """

    store: embedcache.FeatureStore
    folder: Path
    texts: list[str]
    run: Run


@pytest.fixture(scope="session")
def helpdesk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helpdesk]:
    folder = tmp_path_factory.mktemp("helpdesk")
    lines = (ROOT / "examples" / "helpdesk.txt").read_text(encoding="utf-8").splitlines()
    parts = {"train": lines[:150], "test": lines[150:210]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    with embedcache.open_store(folder / "store") as store:
        corpus = {name: str(folder / f"{name}.txt") for name in parts}
        embedcache.build(store, corpus, dataset="helpdesk")
        config = TrainConfig(filters=8, kernel_sizes=(2, 3), epochs=2, batch_size=32)
        run = train(store, "helpdesk", config)
        texts = [line.split(" ", 1)[1] for line in parts["test"]]
        yield Helpdesk(store, folder, texts, run)
