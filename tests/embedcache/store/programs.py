"""What the store's tests put into stores, and the programs that they run as processes.

    python programs.py COMMAND ARGUMENT…

Each text's matrix is made from its key, so that every process knows what it must read.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EmbedCacheError
from embedcache.keys import key_of_text, keys_of_texts
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.writer import ShardWriter, WriterLimits
from embedcache.view import FeatureView

VIEW = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="module", dim=4)


def matrix_of(text: str, dim: int = VIEW.dim) -> NDArray[np.float16]:
    """The matrix of a text: 0 to 5 rows of small integers, so that rows repeat."""
    key = key_of_text(text)
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    return rng.integers(-2, 3, (key[0] % 6, dim)).astype(np.float16)


def add_texts(writer: ShardWriter, texts: Sequence[str], *, dim: int = VIEW.dim) -> None:
    """Add texts to the open shard."""
    matrices = [matrix_of(text, dim) for text in texts]
    lengths = np.array([len(matrix) for matrix in matrices], np.int64)
    values = np.concatenate([np.zeros((0, dim), np.float16), *matrices])
    writer.add_values(keys_of_texts(texts), lengths, np.zeros(len(texts), np.bool_), values=values)


def put(
    store: FeatureStore,
    texts: Sequence[str],
    *,
    view: FeatureView = VIEW,
    encoding: str = "dense",
) -> None:
    """Make texts durable in one shard."""
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view, limits=WriterLimits(encoding=encoding))
    if encoding == "dense":
        add_texts(writer, texts, dim=view.dim)
    else:
        matrices = [matrix_of(text, view.dim) for text in texts]
        rows = np.concatenate([np.zeros((0, view.dim), np.float16), *matrices])
        table, codes = np.unique(rows, axis=0, return_inverse=True)
        writer.add_codes(
            keys_of_texts(texts),
            np.array([len(matrix) for matrix in matrices], np.int64),
            np.zeros(len(texts), np.bool_),
            codes=codes.reshape(-1).astype(np.uint32),
            table=table,
        )
    writer.flush()


def assert_served(store: FeatureStore, texts: Sequence[str], view: FeatureView = VIEW) -> None:
    """Every text has the matrix that it must have."""
    features = store.get(view, texts)
    assert len(features) == len(texts)
    for text, matrix in zip(texts, features, strict=True):
        np.testing.assert_array_equal(matrix, matrix_of(text, view.dim), strict=True)


def append(path: str, name: str, num_shards: str) -> None:
    """Append shards of 5 texts, ``NAME-0``, ``NAME-1``…; each is told once acknowledged."""
    with open_store(path) as store:
        store.catalog.add_view(VIEW, "builtin:nothing")
        writer = store.writer(VIEW)
        for shard in range(int(num_shards)):
            texts = [f"{name}-{shard * 5 + number}" for number in range(5)]
            add_texts(writer, texts)
            writer.flush()
            print(*texts, flush=True)


def close_and_end(path: str) -> None:
    """Close one shard, begin another, and end without a flush."""
    with open_store(path) as store:
        store.catalog.add_view(VIEW, "builtin:nothing")
        writer = store.writer(VIEW)
        add_texts(writer, ["closed"])
        writer.close_shard()
        add_texts(writer, ["open"])


def write_large(path: str, num_parts: str) -> None:
    """Write a shard of so many MB and tell it, and by how many bytes memory grew meanwhile."""
    view = replace(VIEW, dim=512)
    values = np.ones((1000, view.dim), np.float16)
    lengths, flags = np.full(500, 2), np.zeros(500, np.uint8)
    with open_store(path) as store:
        put(store, ["first"])  # what is imported or made once
        store.catalog.add_view(view, "builtin:nothing")
        writer = store.writer(view, limits=WriterLimits(encoding="dense"))
        for part in range(int(num_parts)):
            texts = [f"{part} {number}" for number in range(500)]
            writer.add_values(keys_of_texts(texts), lengths, flags, values=values)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        writer.flush()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(writer.published[0].num_bytes, (after - before) << 10)


def create(path: str) -> None:
    """Make a store at the moment when standard input closes."""
    print("ready", flush=True)
    sys.stdin.read()
    open_store(path).close()


def append_limited(folder: str, *limits: str) -> None:
    """Append while no file may be longer than so many bytes, for each of several limits.

    Once to the store ``old`` in a folder and once to a new one; tells each error, or nothing
    where the limit is enough.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes: list[tuple[str, str, str]] = []
    for limit in limits:
        for name in ("old", f"new-{limit}"):
            error = ""
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
            try:
                with open_store(Path(folder) / name) as store:
                    put(store, [f"{limit}-{number}" for number in range(50)])
            except EmbedCacheError as caught:
                error = f"{type(caught).__name__}: {caught}"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            outcomes.append((name, limit, error))
    print(json.dumps(outcomes))


def use_after_fork(path: str) -> None:
    """Use an open store in a forked child, then one that the child opens itself."""
    with open_store(path) as store:
        assert_served(store, ["a"])
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert status == 0
            assert_served(store, ["a"])
            return
        uses: list[Callable[[], Any]] = [lambda: store.get(VIEW, ["a"]), store.catalog.views]
        for use in uses:
            try:
                use()
                print("served")
            except EmbedCacheError as error:
                print(f"{type(error).__name__}: {error}")
        store.close()
        with open_store(path) as own:
            assert_served(own, ["a"])
            print("own: served", flush=True)
        os._exit(0)


def read_as_nobody(path: str) -> None:
    """Read a store, and fail to write to it, as a user who may only read."""
    # Once before, for what Python imports late: that user need not be able to read it.
    with open_store(path) as store:
        assert_served(store, ["a", "b"])
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with open_store(path) as store:
        assert_served(store, ["a", "b"])
        store.reader(VIEW).save_index()
        try:
            put(store, ["c"])
        except EmbedCacheError as error:
            print(type(error).__name__, error)


def flip(source: str, folder: str, seed: str, every: str = "1", bug: str = "") -> None:
    """Flip one bit of every byte of a shard, or of every so manieth, and read all of it.

    One at a time; ``every`` "bit" flips each bit of each byte.
    """
    image = Path(source).read_bytes()
    if every == "bit":
        flips = [(position, bit) for position in range(len(image)) for bit in range(8)]
    else:
        bits = np.random.default_rng(int(seed)).integers(0, 8, len(image)).tolist()
        flips = list(enumerate(bits))[:: int(every)]

    def damaged() -> Iterator[bytes]:
        for position, bit in flips:
            copy = bytearray(image)
            copy[position] ^= 1 << bit
            yield bytes(copy)

    _read_damaged(source, folder, damaged(), bug)


def _read_damaged(source: str, folder: str, images: Iterator[bytes], bug: str) -> None:
    """Count what becomes of damaged images. A crash leaves the culprit in ``damaged.h5``."""
    expected = shard_content(Path(source))
    if bug == "no-checksums":
        Shard._verify_block = lambda *_: None  # type: ignore[method-assign]
    outcomes: Counter[str] = Counter()
    path = Path(folder) / "damaged.h5"
    for image in images:
        path.write_bytes(image)
        try:
            outcome = "harmless" if shard_content(path) == expected else "wrong"
        except EmbedCacheError as error:
            outcome = "refused" if "\n" not in str(error) else "several lines"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        outcomes[outcome] += 1
    print(json.dumps(outcomes))


def shard_content(path: Path) -> list[bytes]:
    """All that a reader may get from a shard, as bytes."""
    shard = Shard(path)
    features = shard.read(np.arange(len(shard)))
    arrays: list[NDArray[Any] | None] = [
        shard.keys, shard.row_splits, shard.flags, features.values, features.row_splits
    ]  # fmt: skip
    for row in range(len(shard)):
        arrays += [shard.read_spans(row), shard.read_token_ids(row)]
    found = [b"none" if array is None else array.tobytes() for array in arrays]
    return [shard.view.to_json().encode(), *found]


_COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        append,
        append_limited,
        close_and_end,
        create,
        flip,
        read_as_nobody,
        use_after_fork,
        write_large,
    )
}

if __name__ == "__main__":
    _COMMANDS[sys.argv[1]](*sys.argv[2:])
