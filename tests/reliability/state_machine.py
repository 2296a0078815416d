"""A store behaves like a dict of text → matrix, whatever is done to it in between.

Hypothesis draws the operations. Texts that an operation may take away (those of a shard that
was damaged, those that no dataset uses when garbage is collected) may be there or not after;
all others must be, and what is there must be right.
"""

from __future__ import annotations

import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from embedcache.errors import CorruptShardError, KeyNotFoundError
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.deleting import delete_datasets, delete_view
from embedcache.store.upkeep.forget import forget_texts
from embedcache.store.upkeep.gc import GcOptions, collect_garbage
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.upkeep.repair import repair_store
from tests.embedcache.store.programs import VIEW, matrix_of, put
from tests.reliability.bugs import seed_bug
from tests.reliability.history import register_dataset
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Tell

TITLE = "operations drawn by Hypothesis, against a dict"
SHORT = {"num_operations": 250}
FULL = {"num_operations": 10_000}

_STEPS = 25
_TIMEOUT_S = 3600.0
_MOST_TOLD = 1500
_VIEWS = (VIEW, replace(VIEW, dim=6))
_TEXTS = tuple(f"text {number}" for number in range(30))
_DATASETS = ("one", "two", "three")

_views = st.integers(0, len(_VIEWS) - 1)
_some_texts = st.lists(st.sampled_from(_TEXTS), min_size=1, max_size=8, unique=True)
_encodings = st.sampled_from(["auto", "dense", "dictionary"])
_places = st.integers(0, 1 << 20)

Entry = tuple[int, str]
"""Number of the view, and text."""


def run(folder: Path, *, num_operations: int, seed: int, bug: str = "") -> Outcome:
    """Do so many operations, on a new store after 25 at most.

    Args:
        folder: For the stores.
        num_operations: How many at least.
        seed: Of Hypothesis.
        bug: A seeded one.
    """

    def body(tell: Tell) -> None:
        seed_bug(bug)
        counts = Counter[str]()
        rounds = 0
        try:
            while counts.total() < num_operations:
                num_examples = 1 + (num_operations - counts.total()) // _STEPS
                _run_machine(folder, counts, num_examples, seed + rounds)
                rounds += 1
        except Exception:  # whatever a store may raise
            # The end of it names the operations.
            tell("fault", " ⏎ ".join(traceback.format_exc().splitlines())[-_MOST_TOLD:])
        tell("counts", *(f"{name} {count:,}" for name, count in counts.most_common()))
        tell("total", f"{counts.total():,}")

    ended = Child(body).wait(_TIMEOUT_S)
    findings = Findings()
    ended.check(findings, "the state machine")
    for fault in ended.told("fault"):
        findings.add_wrong("the state machine", fault)
    done = f"{''.join(ended.told('total'))} operations: {', '.join(ended.told('counts'))}"
    return Outcome(done=done, findings=findings)


def _run_machine(folder: Path, counts: Counter[str], num_examples: int, seed: int) -> None:
    def factory() -> StoreMachine:
        return StoreMachine(folder / "store", counts)

    run_state_machine_as_test(
        with_seed(seed)(factory),
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        ),
    )


def _counted(body: Callable[..., None]) -> Callable[..., None]:
    """Count how often a rule is carried out."""

    def counting(self: StoreMachine, *arguments: object, **named: object) -> None:
        self.counts[body.__name__.replace("_", " ")] += 1
        body(self, *arguments, **named)

    counting.__name__ = body.__name__
    return counting


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dict. Two handles are open on it, as two processes have them.

    Args:
        path: The store's folder.
        counts: Operations carried out, by name; renewed.
    """

    def __init__(self, path: Path, counts: Counter[str]) -> None:
        super().__init__()
        self._path = path
        self.counts = counts
        shutil.rmtree(path, ignore_errors=True)
        self._there: set[Entry] = set()
        self._datasets: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._open()

    def teardown(self) -> None:
        self._close()

    def _open(self) -> None:
        self._stores = (open_store(self._path), open_store(self._path))

    def _close(self) -> None:
        for store in self._stores:
            store.close()

    @property
    def _store(self) -> FeatureStore:
        return self._stores[0]

    # What a dict has

    @rule(view=_views, texts=_some_texts, encoding=st.sampled_from(["dense", "dictionary"]))
    @_counted
    def put(self, view: int, texts: list[str], encoding: str) -> None:
        put(self._store, texts, view=_VIEWS[view], encoding=encoding)
        self._there |= {(view, text) for text in texts}

    @rule(view=_views, texts=_some_texts, handle=st.integers(0, 1))
    @_counted
    def get(self, view: int, texts: list[str], handle: int) -> None:
        there = [text for text in texts if (view, text) in self._there]
        self._check_matrices(self._stores[handle], view, there)

    @rule(view=_views, texts=_some_texts, handle=st.integers(0, 1))
    @_counted
    def ask_for_a_missing_one(self, view: int, texts: list[str], handle: int) -> None:
        if all((view, text) in self._there for text in texts):
            return
        try:
            self._stores[handle].get(_VIEWS[view], texts)
        except KeyNotFoundError:
            return
        raise AssertionError("a missing text was served")

    @rule(view=_views, handle=st.integers(0, 1))
    @_counted
    def contains(self, view: int, handle: int) -> None:
        present = self._stores[handle].contains(_VIEWS[view], _TEXTS).tolist()
        assert present == [(view, text) in self._there for text in _TEXTS]

    def _check_matrices(self, store: FeatureStore, view: int, texts: list[str]) -> None:
        dim = _VIEWS[view].dim
        for text, matrix in zip(texts, store.get(_VIEWS[view], texts), strict=True):
            np.testing.assert_array_equal(matrix, matrix_of(text, dim), strict=True)

    # What a store has besides

    @rule()
    @_counted
    def reopen(self) -> None:
        self._close()
        self._open()

    @rule(fix=st.booleans())
    @_counted
    def verify(self, fix: bool) -> None:
        report = verify_store(self._store, fix=fix)
        assert (report.corrupt, report.missing) == ([], [])

    @rule(view=_views)
    @_counted
    def save_index(self, view: int) -> None:
        self._store.reader(_VIEWS[view]).save_index()

    @rule(name=st.sampled_from(_DATASETS), view=_views, texts=_some_texts)
    @_counted
    def build_dataset(self, name: str, view: int, texts: list[str]) -> None:
        put(self._store, texts, view=_VIEWS[view])
        self._there |= {(view, text) for text in texts}
        delete_datasets(self._store, _versions(self._store, name))
        register_dataset(self._store, name, texts, _VIEWS[view])
        self._datasets[name] = (view, tuple(texts))

    @precondition(lambda self: self._datasets)
    @rule(place=_places)
    @_counted
    def load_dataset(self, place: int) -> None:
        name = sorted(self._datasets)[place % len(self._datasets)]
        _, texts = self._datasets[name]
        np.testing.assert_array_equal(self._store.load_dataset(name).keys, keys_of_texts(texts))

    @precondition(lambda self: self._datasets)
    @rule(place=_places)
    @_counted
    def delete_dataset(self, place: int) -> None:
        name = sorted(self._datasets)[place % len(self._datasets)]
        delete_datasets(self._store, _versions(self._store, name))
        del self._datasets[name]

    # Maintenance

    @rule(
        encoding=st.sampled_from(["auto", "dense", "dictionary"]), grace_s=st.sampled_from([0, 60])
    )
    @_counted
    def compact(self, encoding: str, grace_s: float) -> None:
        compact_store(self._store, options=CompactOptions(encoding=encoding, grace_s=grace_s))

    @rule()
    @_counted
    def gc(self) -> None:
        collect_garbage(self._store, GcOptions(grace_s=0))
        used = {(view, text) for view, texts in self._datasets.values() for text in texts}
        self._take_away(self._there - used)

    @rule(texts=_some_texts)
    @_counted
    def forget(self, texts: list[str]) -> None:
        forget_texts(self._store, keys_of_texts(texts))
        self._there -= {(view, text) for view in range(len(_VIEWS)) for text in texts}
        for name, (view, known) in list(self._datasets.items()):
            left = tuple(text for text in known if text not in texts)
            self._datasets[name] = (view, left)
            if not left:
                del self._datasets[name]

    @rule(view=_views)
    @_counted
    def delete_view(self, view: int) -> None:
        for record in self._store.catalog.views():
            if record.fingerprint == _VIEWS[view].fingerprint:
                delete_view(self._store, record, grace_s=0)
        self._there = {entry for entry in self._there if entry[0] != view}

    def _take_away(self, entries: Iterable[Entry]) -> None:
        """These, and no others, may be gone now; what is there must be right."""
        for view, known in enumerate(_VIEWS):
            present = self._store.contains(known, _TEXTS).tolist()
            there = {
                (view, text) for text, is_there in zip(_TEXTS, present, strict=True) if is_there
            }
            before = {entry for entry in self._there if entry[0] == view}
            assert there <= before, f"came from nowhere: {sorted(there - before)}"
            assert before - there <= set(entries), f"went away: {sorted(before - there)}"
            self._there = (self._there - before) | there
            self._check_matrices(self._store, view, [text for _, text in sorted(there)])

    # Damage

    @precondition(lambda self: self._store.catalog.shards())
    @rule(shard=_places, place=_places, kind=st.sampled_from(["flip", "cut", "zeros", "remove"]))
    @_counted
    def damage_a_shard_and_fix(self, shard: int, place: int, kind: str) -> None:
        records = self._store.catalog.shards()
        record = records[shard % len(records)]
        path = self._store.layout.shard_path(record.view, record.digest)
        keys = set(map(bytes, Shard(path).keys))
        self._close()
        _damage(path, place, kind)
        self._open()
        number = [view.fingerprint for view in _VIEWS].index(record.view)
        its_own = {(number, text) for text in _TEXTS if bytes(keys_of_texts([text])[0]) in keys}
        num_refused = 0
        for view, text in sorted(self._there):
            try:
                self._check_matrices(self._store, view, [text])
            except CorruptShardError:
                assert view == number, "another view is damaged too"
                num_refused += 1
        report = verify_store(self._store, fix=True)
        num_faults = len(report.corrupt) + len(report.missing)
        # A byte that means nothing may have been hit; then there is nothing to fix either.
        assert num_faults == 1 or (num_faults == 0 and num_refused == 0), report
        assert report.is_well
        self._take_away(its_own)
        put(self._store, [text for _, text in sorted(its_own)], view=_VIEWS[number])
        self._there |= its_own

    @rule(whole=st.booleans())
    @_counted
    def lose_the_catalog(self, whole: bool) -> None:
        versions = {name: self._store.load_dataset(name).version for name in sorted(self._datasets)}
        self._close()
        self._store.layout.catalog.unlink()
        if whole:
            repair_store(self._path)
        self._open()
        # Names are the catalog's alone.
        known = {f"recovered-{versions[name][:12]}": told for name, told in self._datasets.items()}
        self._datasets = known if whole else {}

    @rule(place=_places, kind=st.sampled_from(["flip", "cut", "zeros", "remove"]))
    @_counted
    def damage_the_index(self, place: int, kind: str) -> None:
        files = sorted(path for path in self._store.layout.index.rglob("*") if path.is_file())
        if not files:
            return
        self._close()
        _damage(files[place % len(files)], place // 7, kind)
        self._open()

    @rule(place=_places, where=st.sampled_from(["tmp", "shards", "datasets", "index"]))
    @_counted
    def leave_a_strange_file(self, place: int, where: str) -> None:
        folder = self._store.layout.root / where
        if where == "shards":
            folder /= _VIEWS[place % 2].fingerprint
        folder.mkdir(exist_ok=True)
        name = f"{np.random.default_rng(place).bytes(16).hex()}{'.h5' if where == 'shards' else ''}"
        (folder / name).write_bytes(b"not what is expected here" * (place % 5))


def _versions(store: FeatureStore, name: str) -> list[DatasetRecord]:
    """The versions of a dataset; none if there is no such name."""
    return [record for record in store.catalog.datasets() if record.name == name]


def _damage(path: Path, place: int, kind: str) -> None:
    """Do something to a file, in a new one as a restored backup would be."""
    image = bytearray(path.read_bytes())
    path.unlink()
    if kind == "remove":
        return
    start = place % max(1, len(image))
    if kind == "cut":
        del image[start:]
    elif kind == "zeros":
        image[start : start + 600] = bytes(len(image[start : start + 600]))
    elif image:
        image[start] ^= 1 << place % 8
    path.write_bytes(image)
