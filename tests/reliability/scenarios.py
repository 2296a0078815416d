"""Programs that change a store, with what is promised before and what they promise.

They are run while calls fail, while the power fails, on a full disk. A program tells

    texts A B …                these are in the store from now on
    dataset NAME               this one is registered
    withdrawing texts A B …    these may be gone from now on
    withdrawing dataset NAME   this one may be gone
    gone A B …                 nothing of these is in any file of the store
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.keys import keys_of_texts
from embedcache.store.store import open_store
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.deleting import delete_datasets, find_versions
from embedcache.store.upkeep.forget import forget_texts
from embedcache.store.upkeep.gc import GcOptions, collect_garbage
from embedcache.store.upkeep.maintain import verify_store
from embedcache.view import FeatureView
from tests.embedcache.store.programs import VIEW, put
from tests.reliability.history import (
    ACKNOWLEDGE_BEFORE_COMMIT,
    Acknowledged,
    TellingWriter,
    check_store,
    register_dataset,
)
from tests.reliability.outcome import Findings
from tests.reliability.processes import Tell

_OLD_TEXTS = ["old-0", "old-1", "old-2"]
_KEPT_TEXTS = [f"kept-{number}" for number in range(7)]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A program, and the store that it finds.

    Attributes:
        name: What it is called.
        prepare: Makes the store; None: there is none.
        act: The program: it is given the store's folder, a function to tell, a bug's name.
        texts: What is promised before.
        datasets: The same of datasets.
        view: Of all texts.
    """

    name: str
    prepare: Callable[[Path], None] | None
    act: Callable[[Path, Tell, str], None]
    texts: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    view: FeatureView = VIEW

    def begin(self, path: Path, prepared: Path) -> None:
        """Put the store where the program will find it; ``prepared`` keeps it to be copied."""
        shutil.rmtree(path, ignore_errors=True)
        if self.prepare is None:
            return
        if not prepared.exists():
            self.prepare(prepared)
        shutil.copytree(prepared, path)

    def check(
        self, path: Path, lines: Sequence[Sequence[str]], findings: Findings, where: str
    ) -> None:
        """All that is promised after these lines holds, and the next program can go on."""
        texts, datasets = set(self.texts), set(self.datasets)
        gone: list[str] = []
        for what, *words in lines:
            if what == "texts":
                texts.update(words)
            elif what == "dataset":
                datasets.update(words)
            elif what == "withdrawing texts":
                texts.difference_update(words)
            elif what == "withdrawing dataset":
                datasets.difference_update(words)
            elif what == "gone":
                gone += words
        promised = Acknowledged(datasets=sorted(datasets))
        promised.add_texts(sorted(texts), self.view)
        check_store(path, promised, findings, where=where, append="after")
        _check_gone(path, gone, findings, where)


def _check_gone(path: Path, texts: Sequence[str], findings: Findings, where: str) -> None:
    for file in path.rglob("*") if texts else ():
        content = file.read_bytes() if file.is_file() else b""
        for text in texts:
            if keys_of_texts([text]).tobytes() in content:
                name = file.relative_to(path)
                findings.add_wrong(where, f"{text!r} was forgotten and its key is in {name}")


def writing(name: str, view: FeatureView = VIEW, *, old: bool) -> Scenario:
    """Shards of every way to close, an index, a dataset; in a new store or an old one."""

    def prepare(path: Path) -> None:
        with open_store(path) as store:
            put(store, _OLD_TEXTS, view=view)

    def act(path: Path, tell: Tell, bug: str) -> None:
        texts = [f"new-{number}" for number in range(11)]
        with open_store(path) as store:
            store.catalog.add_view(view, "builtin:nothing")
            writer = TellingWriter(store, view, tell, max_texts=4)
            if bug == ACKNOWLEDGE_BEFORE_COMMIT:
                tell("texts", *texts)
            writer.add(texts[:2])
            writer.flush()
            for first in (2, 5, 8):
                writer.add(texts[first : first + 3])
            writer.flush()
            store.reader(view).save_index()
            register_dataset(store, "new", texts, view)
            tell("dataset", "new")

    if old:
        return Scenario(name, prepare, act, texts=tuple(_OLD_TEXTS), view=view)
    return Scenario(name, None, act, view=view)


def _prepare_to_maintain(path: Path) -> None:
    """Small shards with a text that lies twice, one that nothing uses, and two datasets."""
    with open_store(path) as store:
        for first in (0, 2, 4):
            put(store, _KEPT_TEXTS[first : first + 3])
        put(store, ["unused-0", "unused-1"])
        store.reader(VIEW).save_index()
        register_dataset(store, "kept", _KEPT_TEXTS)
        register_dataset(store, "second", _KEPT_TEXTS[:4])


def _maintain(path: Path, tell: Tell, _bug: str) -> None:
    with open_store(path) as store:
        compact_store(store, options=CompactOptions(grace_s=0))
        collect_garbage(store, GcOptions(grace_s=0))
        tell("withdrawing texts", _KEPT_TEXTS[0])
        forget_texts(store, keys_of_texts(_KEPT_TEXTS[:1]))
        tell("gone", _KEPT_TEXTS[0])
        tell("withdrawing dataset", "second")
        delete_datasets(store, find_versions(store, "second", every=True))
        verify_store(store, fix=True)


SCENARIOS = (
    writing("new store", old=False),
    writing("old store", old=True),
    Scenario(
        "maintenance", _prepare_to_maintain, _maintain, tuple(_KEPT_TEXTS), ("kept", "second")
    ),
)
