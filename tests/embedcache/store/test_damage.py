"""Damaged shards: whatever happens to the bytes, no wrong vector and no crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from embedcache.errors import CorruptShardError
from embedcache.store.store import FeatureStore

NAMES = ("dense.h5", "dictionary.h5", "dense-v2.h5", "dictionary-v2.h5")
SEED = 20_251_122

Run = Callable[..., str]


def test_one_flipped_bit_in_any_byte_is_refused(golden: Path, tmp_path: Path, run: Run) -> None:
    def flip(name: str) -> dict[str, int]:
        folder = tmp_path / name
        folder.mkdir()
        outcomes: dict[str, int] = json.loads(run("flip", golden / name, folder, SEED))
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        for name, outcomes in zip(NAMES, pool.map(flip, NAMES), strict=True):
            assert outcomes == {"refused": (golden / name).stat().st_size}


def test_one_flipped_bit_is_refused_in_a_shard_of_every_dataset(
    make_golden: ModuleType, tmp_path: Path, run: Run
) -> None:
    # Eight datasets, as many as HDF5 lists in the root's own header.
    contents = make_golden.golden_contents()
    extras = contents["dense-v2.h5"].extras
    path = tmp_path / "all.h5"
    path.write_bytes(replace(contents["dictionary.h5"], extras=extras).image())
    outcomes = json.loads(run("flip", path, tmp_path, SEED, 2))
    assert outcomes == {"refused": -(-path.stat().st_size // 2)}


@pytest.mark.parametrize("name", ["dense.h5", "dense-v2.h5"])
def test_flips_are_seen_as_wrong_vectors_when_the_checksums_are_not_compared(
    golden: Path, tmp_path: Path, run: Run, name: str
) -> None:
    # The harness itself: with this bug seeded, the test above must fail.
    outcomes = json.loads(run("flip", golden / name, tmp_path, SEED, 3, "no-checksums"))
    assert outcomes["wrong"] > 10


def test_shard_swapped_with_another_views_is_refused(store: FeatureStore, programs: object) -> None:
    view = programs.VIEW  # type: ignore[attr-defined]
    other = replace(view, max_tokens=7)
    for one in (view, other):
        programs.put(store, ["a", "b"], view=one)  # type: ignore[attr-defined]
    paths = [
        store.layout.shard_path(record.view, record.digest) for record in store.catalog.shards()
    ]
    images = [path.read_bytes() for path in paths]
    for path, image in zip(paths, reversed(images), strict=True):
        path.write_bytes(image)
    store.close()
    for one in (view, other):
        with pytest.raises(CorruptShardError, match="belongs to another view"):
            store.get(one, ["a"])
