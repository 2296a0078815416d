"""What the tests of maintenance put into stores, and the programs that they kill.

    python maintenance_programs.py ACTION FOLDER [COUNT]

A text's rows, token ids and spans are made from its key, and are its own: their bytes can be
looked for in files.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import key_of_text, keys_of_texts
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.forget import forget_texts
from embedcache.store.upkeep.gc import GcOptions, collect_garbage
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.upkeep.transfer import transfer
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView

VIEW = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="module", dim=8)
OTHER = FeatureView(module_digest="1" * 32, signature="__call__", tokenizer="module", dim=8)

Tokens = tuple[NDArray[np.float16], NDArray[np.uint32], NDArray[np.uint32]]


def tokens_of(text: str, dim: int = VIEW.dim) -> Tokens:
    """Rows (n, dim), token ids (n,) and spans (n, 2) of a text, with 2 to 5 tokens."""
    key = key_of_text(text)
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    num_tokens = 2 + key[0] % 4
    rows = rng.standard_normal((num_tokens, dim)).astype(np.float16)
    spans = np.sort(rng.integers(0, 1 << 31, (num_tokens, 2)).astype(np.uint32), axis=1)
    return rows, rng.integers(0, 1 << 31, num_tokens).astype(np.uint32), spans


def put(
    store: FeatureStore,
    texts: Sequence[str],
    *,
    view: FeatureView = VIEW,
    encoding: str = "dense",
    with_tokens: bool = True,
) -> None:
    """Make texts durable in one shard."""
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view, limits=WriterLimits(encoding=encoding))
    found = [tokens_of(text, view.dim) for text in texts]
    rows, ids, spans = (np.concatenate(column) for column in zip(*found, strict=True))
    lengths = np.array([len(tokens[0]) for tokens in found], np.int64)
    flags = np.array([len(text) % 2 for text in texts], np.uint8)
    tokens: dict[str, Any] = {"token_ids": ids, "spans": spans} if with_tokens else {}
    keys = keys_of_texts(texts)
    if encoding == "dense":
        writer.add_values(keys, lengths, flags, values=rows, **tokens)
    else:
        codes = np.arange(len(rows), dtype=np.uint32)
        writer.add_codes(keys, lengths, flags, codes=codes, table=rows, **tokens)
    writer.flush()


def register(
    store: FeatureStore,
    name: str,
    texts: Sequence[str],
    *,
    view: FeatureView | None = VIEW,
    **columns: Sequence[Any],
) -> str:
    """Register texts as a dataset built under a view; returns the version."""
    with DatasetWriter(store.layout.tmp) as writer:
        labels, splits, ids = (columns.get(name) for name in ("labels", "splits", "ids"))
        writer.add(keys_of_texts(texts), labels, splits, ids)
        version, num_unique = writer.finish()
        writer.publish(store.layout.dataset_path(version))
    record = DatasetRecord(name, version, len(texts), num_unique, [{"path": "a"}], 0.0)
    fingerprint = view.fingerprint if view else "f" * 32
    store.catalog.add_dataset(record, view=fingerprint, report={"texts": len(texts)})
    return version


def assert_served(
    store: FeatureStore, texts: Sequence[str], *, view: FeatureView = VIEW, with_tokens: bool = True
) -> None:
    """Every text has the rows, ids, spans and flag that it must have."""
    refs, reader = store.locate(view, texts)
    features = reader.gather(refs)
    records = reader.token_records(refs)
    for text, matrix, record, cut in zip(
        texts, features, records, refs.truncated.tolist(), strict=True
    ):
        rows, ids, spans = tokens_of(text, view.dim)
        np.testing.assert_array_equal(matrix, rows, strict=True)
        assert cut == (len(text) % 2)
        if with_tokens:
            np.testing.assert_array_equal(record.token_ids, ids, strict=True)
            np.testing.assert_array_equal(record.spans, spans, strict=True)


def present(store: FeatureStore, texts: Sequence[str], view: FeatureView = VIEW) -> list[bool]:
    """Which texts have features."""
    found: list[bool] = store.contains(view, texts).tolist()
    return found


def assert_whole(store: FeatureStore) -> None:
    """Nothing is damaged or missing."""
    report = verify_store(store)
    assert (report.corrupt, report.missing) == ([], []), report


def age(store: FeatureStore, seconds: float = 7200.0) -> None:
    """Make all that the catalog knows older, and all files."""
    raw = sqlite3.connect(store.layout.catalog)
    with raw:
        raw.execute("UPDATE shards SET created_at = created_at - ?", (seconds,))
        raw.execute("UPDATE retired SET retired_at = retired_at - ?", (seconds,))
        raw.execute("UPDATE uses SET used_at = used_at - ?", (seconds,))
        raw.execute("UPDATE builds SET created_at = created_at - ?", (seconds,))
    raw.close()
    for path in store.path.rglob("*"):
        found = path.stat()
        os.utime(path, (found.st_atime - seconds, found.st_mtime - seconds))


def traces_of(folder: Path, texts: Iterable[str], *, dim: int = VIEW.dim) -> list[str]:
    """What of texts is found in any file under a folder: keys, their halves, rows, ids, spans."""
    wanted: dict[str, bytes] = {}
    for text in texts:
        key = key_of_text(text)
        rows, ids, spans = tokens_of(text, dim)
        wanted[f"text {text}"] = text.encode()
        wanted[f"key of {text}"] = key
        wanted[f"high half of {text}"] = key[:8][::-1]
        wanted[f"low half of {text}"] = key[8:][::-1]
        for number in range(len(rows)):
            wanted[f"row {number} of {text}"] = rows[number].tobytes()
        wanted[f"ids of {text}"] = ids.tobytes()
        wanted[f"spans of {text}"] = spans.tobytes()
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += [f"{what} in {path.name}" for what, part in wanted.items() if part in content]
    return found


# What is killed

_USED = [f"used-{number}" for number in range(12)]
_UNUSED = [f"unused-{number}" for number in range(6)]


def _prepare(store: FeatureStore) -> None:
    put(store, _USED[:6] + _UNUSED[:3])
    put(store, _USED[4:9])
    put(store, _USED[9:] + _UNUSED[3:], encoding="dictionary")
    put(store, [*_UNUSED[:2]])
    register(store, "used", _USED)
    store.reader(VIEW).save_index()
    age(store)


def _compact(store: FeatureStore, _other: Path) -> None:
    compact_store(store, options=CompactOptions(grace_s=0))


def _gc(store: FeatureStore, _other: Path) -> None:
    collect_garbage(store, GcOptions(grace_s=0))


def _forget(store: FeatureStore, _other: Path) -> None:
    forget_texts(store, keys_of_texts([*_USED[:2], *_UNUSED]))


def _push(store: FeatureStore, other: Path) -> None:
    with open_store(other) as target:
        transfer(store, target)


def _compacted(store: FeatureStore, _other: Path) -> None:
    assert_served(store, _USED + _UNUSED)
    report = verify_store(store)
    assert (report.duplicates, report.retired) == (0, 0), report
    assert len(store.catalog.shards()) == 2


def _collected(store: FeatureStore, _other: Path) -> None:
    assert_served(store, _USED)
    assert not any(present(store, _UNUSED))
    assert verify_store(store).retired == 0


def _forgotten(store: FeatureStore, _other: Path) -> None:
    assert_served(store, _USED[2:])
    gone = [*_USED[:2], *_UNUSED]
    assert not any(present(store, gone))
    assert traces_of(store.path, gone) == []
    assert len(store.load_dataset("used")) == len(_USED) - 2


def _pushed(store: FeatureStore, other: Path) -> None:
    assert_served(store, _USED + _UNUSED)
    with open_store(other, create=False) as target:
        assert_served(target, _USED + _UNUSED)
        assert target.load_dataset("used").version == store.load_dataset("used").version
        assert_whole(target)


Action = Callable[[FeatureStore, Path], None]
ACTIONS: dict[str, tuple[Action, list[str], Action]] = {
    "compact": (_compact, _USED + _UNUSED, _compacted),
    "gc": (_gc, _USED, _collected),
    "forget": (_forget, _USED[2:], _forgotten),
    "push": (_push, _USED + _UNUSED, _pushed),
}
"""What is done, what must be served whenever it is killed, and what holds once it is done."""


def die_at_steps(name: str, folder: str, count: str = "") -> None:
    """Kill -9 an action before and after each step; tells how many steps and kills there were.

    With a count, only at so many of them, and at those where the catalog gives something up.
    What must be kept is there after each kill, and calling it again finishes it.
    """
    root = Path(folder)
    with open_store(root / "first") as store:
        _prepare(store)
    steps = _killed_at(name, root, None)
    chosen = set(np.linspace(0, len(steps) - 1, int(count or len(steps))).astype(int).tolist())
    chosen |= {moment for moment, step in enumerate(steps) if step in _GIVING_UP}
    for moment in sorted(chosen):
        _killed_at(name, root, moment)
    print(len(steps), len(chosen))


def _killed_at(name: str, root: Path, moment: int | None) -> list[str]:
    """Run an action on a copy of the first store, killed at a moment; all moments' steps."""
    action, kept, finished = ACTIONS[name]
    path, other = root / "store", root / "other"
    shutil.copytree(root / "first", path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = _die_at_call(moment)
        with open_store(path) as store:
            action(store, other)
        os.write(writing, " ".join(steps).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    assert (os.WTERMSIG(status) == signal.SIGKILL) if moment is not None else status == 0, status
    with open_store(path) as store:
        assert_served(store, kept)
        assert_whole(store)
        action(store, other)
        assert_whole(store)
        finished(store, other)
    shutil.rmtree(path)
    shutil.rmtree(other, ignore_errors=True)
    return told.split()


_STEPS = (
    (os, ("replace", "rename", "unlink")),
    (Path, ("unlink", "rename")),
    (
        Catalog,
        ("add_shard", "retire_shards", "delete_retired", "replace_version", "import_dataset"),
    ),
)


_GIVING_UP = {"retire_shards", "replace_version", "import_dataset"}


def _die_at_call(moment: int | None) -> list[str]:
    """Kill this process before or after one of the calls that change a store; None: never.

    Returns the name of the call at each moment, as they come.
    """
    steps: list[str] = []

    def reach(name: str) -> None:
        if len(steps) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        steps.append(name)

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            reach(name)
            result = real(*arguments, **named)
            reach(name)
            return result

        return call

    for owner, names in _STEPS:
        for name in names:
            setattr(owner, name, dying(name, getattr(owner, name)))
    return steps


if __name__ == "__main__":
    die_at_steps(*sys.argv[1:])
