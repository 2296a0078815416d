"""Many processes append to one store while others read and one compacts: none is disturbed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.gc import collect_garbage
from embedcache.store.upkeep.maintain import verify_store
from tests.embedcache.store.programs import VIEW, matrix_of, put
from tests.reliability.bugs import seed_bug
from tests.reliability.history import Acknowledged, TellingWriter, check_store
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import STATUS_ERROR, Child, Tell

TITLE = "writers, readers and maintenance at once"
SHORT = {"num_processes": 6, "num_appends": 12}
FULL = {"num_processes": 20, "num_appends": 200}

_NUM_READERS = 3
_SHARD_TEXTS = 5
_MOST_READ = 200
_READS_OF_ONE = 12
_GRACE_S = 5.0
_PAUSE_S = 0.3
_TIMEOUT_S = 900.0


def run(folder: Path, *, num_processes: int, num_appends: int, seed: int, bug: str = "") -> Outcome:
    """So many processes append at once; three read and one compacts and collects all the while.

    Args:
        folder: For the store.
        num_processes: How many write.
        num_appends: Shards that each writes.
        seed: Of what the readers read.
        bug: A seeded one, of the writers.
    """
    path, findings = folder / "store", Findings()
    # Readers must find a view from the beginning.
    with open_store(path) as store:
        put(store, ["first"])
    done = folder / "done"
    writers = [Child(_writer(path, number, num_appends, bug)) for number in range(num_processes)]
    readers = [
        Child(_reader(path, done, (num_processes, num_appends), seed + number))
        for number in range(_NUM_READERS)
    ]
    maintainer = Child(_maintainer(path, done))
    acknowledged = Acknowledged()
    acknowledged.add_texts(["first"])
    for number, writer in enumerate(writers):
        ended = writer.wait(_TIMEOUT_S)
        ended.check(findings, f"writer {number}")
        if ended.status:
            findings.add_lost(f"writer {number}", f"could not go on: {ended.errors.strip()[-300:]}")
        acknowledged.add_texts(ended.told("texts"))
    done.touch()
    others = [*((f"reader {number}", reader) for number, reader in enumerate(readers))]
    counts = Counter[str]()
    for name, child in (*others, ("maintainer", maintainer)):
        ended = child.wait(_TIMEOUT_S)
        ended.check(findings, name)
        if ended.status == STATUS_ERROR:
            findings.add_wrong(name, ended.errors.strip())
        for reason in ended.told("wrong"):
            findings.add_wrong(name, reason)
        for what in ("reads", "compacted"):
            counts[what] += sum(map(int, ended.told(what)))
    check_store(path, acknowledged, findings, where="in the end")
    with open_store(path, create=False) as store:
        for orphan in verify_store(store).orphans:
            findings.add_wrong("in the end", f"{orphan} is left over")
    what = (
        f"{num_processes} processes × {num_appends} appends, {counts['reads']:,} reads and"
        f" {counts['compacted']:,} shards compacted meanwhile"
    )
    return Outcome(done=what, findings=findings)


def _names(process: int, append: int) -> list[str]:
    return [f"{process}-{append}-{text}" for text in range(_SHARD_TEXTS)]


def _writer(path: Path, number: int, num_appends: int, bug: str) -> Callable[[Tell], None]:
    def write(tell: Tell) -> None:
        seed_bug(bug)
        with open_store(path) as store:
            store.catalog.add_view(VIEW, "builtin:nothing")
            writer = TellingWriter(store, VIEW, tell, max_texts=_SHARD_TEXTS, bug=bug)
            for append in range(num_appends):
                writer.add(_names(number, append))
                writer.flush()

    return write


def _maintainer(path: Path, done: Path) -> Callable[[Tell], None]:
    """Compacts and collects until a file is there."""

    def maintain(tell: Tell) -> None:
        while not done.exists():
            with open_store(path, create=False) as store:
                reports, _ = compact_store(store, options=CompactOptions(grace_s=_GRACE_S))
                # What was added within the last hour is not looked at.
                collect_garbage(store)
            tell("compacted", str(sum(report.rewritten for report in reports)))
            time.sleep(_PAUSE_S)

    return maintain


def _reader(path: Path, done: Path, counts: tuple[int, int], seed: int) -> Callable[[Tell], None]:
    """Reads until a file is there: each shard whole or not at all, and none goes away."""
    num_processes = counts[0]

    def read(tell: Tell) -> None:
        rng = np.random.default_rng(seed)
        seen = np.zeros(counts, np.bool_)
        num_reads, is_last = 0, False
        while not is_last:
            is_last = done.exists()
            with open_store(path, create=False) as store:
                # The same store some times, as long-lived readers do.
                for _ in range(_READS_OF_ONE):
                    process = int(rng.integers(num_processes))
                    _read(store, process, seen[process], rng, tell)
                    num_reads += 1
        tell("reads", str(num_reads))

    return read


def _read(
    store: FeatureStore, process: int, seen: NDArray[np.bool_], rng: np.random.Generator, tell: Tell
) -> None:
    """Look up all that a writer will ever write, and read some of what is there.

    ``seen``, (num_appends,), are its shards that were seen before; renewed.
    """
    texts = [text for append in range(len(seen)) for text in _names(process, append)]
    present = store.contains(VIEW, texts).reshape(len(seen), _SHARD_TEXTS)
    is_whole = present.all(axis=1)
    if (is_whole != present.any(axis=1)).any():
        tell("wrong", f"half a shard of process {process}")
    if (seen & ~is_whole).any():
        tell("wrong", f"a shard of process {process} went away")
    seen |= is_whole
    chosen = [texts[place] for place in rng.permutation(np.flatnonzero(present))[:_MOST_READ]]
    for text, matrix in zip(chosen, store.get(VIEW, chosen), strict=True):
        if not np.array_equal(matrix, matrix_of(text)):
            tell("wrong", f"not the matrix of {text}")
