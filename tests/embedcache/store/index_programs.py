"""What the index's tests put into indexes, and a program that kills whoever writes one.

python index_programs.py FOLDER
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import embedcache.store.keyindex.index as index_module
from embedcache.keys import KEY_BYTES, Keys, sort_order
from embedcache.store.keyindex.index import ViewIndex, remove_index, segment_paths


def keys_of(keys: Sequence[bytes]) -> Keys:
    """Keys as an array, in their order."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def in_order(keys: Keys) -> Keys:
    """As they lie in a shard."""
    return keys[sort_order(keys)]


def random_keys(number: int, count: int) -> Keys:
    """The keys of a shard, made from its number."""
    rng = np.random.default_rng(number)
    return in_order(rng.integers(0, 256, (count, KEY_BYTES), dtype=np.uint8))


def digest_of(number: int) -> str:
    """The digest of a shard, made from its number."""
    return f"{number:032x}"


def assert_right(index: ViewIndex, counts: dict[str, int]) -> None:
    """The index finds every key of the shards it covers, where it is, and no other key."""
    for digest in index.shards:
        keys = random_keys(int(digest, 16), counts[digest])
        shards, rows = index.locate(keys)
        assert [index.shards[number] for number in np.unique(shards)] == [digest] * bool(len(keys))
        assert rows.tolist() == list(range(len(keys)))
    assert (index.locate(random_keys(-1 % 2**32, 50))[0] == -1).all()


def die_at_each_step(folder: Path) -> None:
    """Kill -9 a process before and after each call by which it writes an index.

    Whatever is left is right for the shards it names, and the next one saves over it. Tells
    how many steps each of the saves took.
    """
    index_module._SMALL_KEYS = 4
    path = folder / "view.index"
    sizes = [300, 40, 3, 2, 200]
    counts = {digest_of(number): count for number, count in enumerate(sizes)}
    for number in range(len(sizes)):
        before = _files_of(path)
        for step in itertools.count():
            child = os.fork()
            if child == 0:
                index = ViewIndex.load(path)
                index = index.with_shard(digest_of(number), random_keys(number, sizes[number]))
                _die_at_call(step)
                index.save(path, tmp_folder=folder / "tmp")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            left = ViewIndex.load(path)
            old = {digest_of(earlier) for earlier in range(number)}
            assert set(left.shards) in (old, old | {digest_of(number)})
            assert len(set(left.shards)) == len(left.shards)
            assert_right(left, counts)
            if status == 0:
                assert digest_of(number) in left.shards
                print(step, flush=True)
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            if digest_of(number) in left.shards:
                _put_back(before, path)


def _files_of(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in segment_paths(path) if file.exists()}


def _put_back(files: dict[Path, bytes], path: Path) -> None:
    remove_index(path)
    for file, content in files.items():
        file.write_bytes(content)


def _die_at_call(step: int) -> None:
    """Kill this process before or after one of the calls that write an index."""
    moments = itertools.count()

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(moments) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if next(moments) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("open", "pwrite", "fsync", "close", "replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))


if __name__ == "__main__":
    die_at_each_step(Path(sys.argv[1]))
