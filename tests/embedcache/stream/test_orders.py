"""Orders: whole epochs, bounded windows, and the choice between full and block shuffle."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.store.ahead import ShardUse
from embedcache.stream import memory, orders
from embedcache.stream.orders import BlockOrder, CorpusOrder, FullOrder, choose_shuffle

MB = 1_000_000


def use_of(
    digest: str, members: list[int], *, num_bytes: int = 1000, starts: list[int] | None = None
) -> ShardUse:
    places = np.array(members, np.int64)
    order = np.array(starts if starts is not None else range(len(members)), np.int64)
    return ShardUse(digest, places, order, num_bytes, 0, True)


@st.composite
def block_orders(draw: st.DrawFn) -> BlockOrder:
    """Texts dealt out to shards of whatever sizes."""
    num_texts = draw(st.integers(1, 200))
    num_shards = draw(st.integers(1, 5))
    shards = np.random.default_rng(draw(st.integers(0, 9))).integers(0, num_shards, num_texts)
    uses = [
        use_of(str(number), members.tolist(), num_bytes=draw(st.integers(0, 40 * MB)))
        for number in range(num_shards)
        if len(members := np.flatnonzero(shards == number))
    ]
    window = draw(st.none() | st.integers(1, 250))
    return BlockOrder.of_shards(uses, window_texts=window, seed=draw(st.integers(0, 3)))


@given(block_orders(), st.integers(0, 3))
def test_block_shuffle_has_every_text_once(order: BlockOrder, number: int) -> None:
    num_texts = len(order.positions)
    assert sorted(order.epoch(number).take(0, num_texts)) == list(range(num_texts))


@given(block_orders(), st.integers(0, 3))
def test_no_text_leaves_its_window_and_no_window_is_too_long(
    order: BlockOrder, number: int
) -> None:
    epoch = order.epoch(number)
    splits = epoch.window_splits.tolist()
    largest_block = int(np.diff(order.splits).max())
    for window, (start, stop) in enumerate(itertools.pairwise(splits)):
        shuffled = epoch.take(start, stop).tolist()
        assert sorted(shuffled) == sorted(epoch.blocks_of_window(window).tolist())
        assert 0 < len(shuffled) <= order.window_texts
    assert largest_block <= max(1, order.window_texts // 8)


@given(block_orders(), st.integers(0, 200), st.integers(0, 200))
def test_any_range_is_the_same_as_of_the_whole(order: BlockOrder, one: int, other: int) -> None:
    num_texts = len(order.positions)
    start, stop = sorted((min(one, num_texts), min(other, num_texts)))
    whole = order.epoch(1).take(0, num_texts).tolist()
    assert order.epoch(1).take(start, stop).tolist() == whole[start:stop]


def test_windows_keep_to_their_bound_wherever_blocks_fall() -> None:
    shards = np.split(np.arange(200), [7, 40, 101, 105])
    uses = [use_of(str(number), members.tolist()) for number, members in enumerate(shards)]
    for window in (16, 25, 50):
        order = BlockOrder.of_shards(uses, window_texts=window, seed=0)
        sizes = [np.diff(order.epoch(number).window_splits) for number in range(30)]
        assert max(int(found.max()) for found in sizes) <= window
        assert min(int(found.min()) for found in sizes) > window // 2


def test_block_is_a_run_of_neighbours_in_one_shard() -> None:
    members, starts = [5, 3, 1, 0], [30, 10, 20, 0]
    order = BlockOrder.of_shards(
        [use_of("b", [2, 4, 6]), use_of("a", members, starts=starts)], window_texts=16, seed=0
    )
    blocks = np.split(order.positions, order.splits[1:-1])
    assert [block.tolist() for block in blocks] == [[0, 3], [1, 5], [2, 4], [6]]


def test_blocks_are_of_some_mib_and_windows_of_several() -> None:
    order = BlockOrder.of_shards(
        [use_of("a", list(range(10_000)), num_bytes=1 << 30)], window_texts=None, seed=0
    )
    assert len(order.splits) - 1 == 256
    assert order.window_texts == 2500
    assert np.diff(order.epoch(0).window_splits).min() > 1500


def test_blocks_do_not_depend_on_the_order_of_the_shards() -> None:
    uses = [use_of("c", [0, 1]), use_of("a", [2, 3]), use_of("b", [4, 5])]
    epochs = [
        BlockOrder.of_shards(found, window_texts=4, seed=1).epoch(2).take(0, 6).tolist()
        for found in (uses, uses[::-1])
    ]
    assert epochs[0] == epochs[1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    uses = [use_of("a", list(range(300)), num_bytes=1 << 30)]
    found = set()
    for seed in (0, 1):
        for order in (
            BlockOrder.of_shards(uses, window_texts=60, seed=seed),
            FullOrder(300, seed),
        ):
            found |= {tuple(order.epoch(number).take(0, 300)) for number in (0, 1, 2)}
    assert len(found) == 12
    corpus = CorpusOrder(300)
    assert corpus.epoch(0).take(0, 300).tolist() == corpus.epoch(4).take(0, 300).tolist()


def test_window_is_shuffled_well() -> None:
    """Each text of a window comes to each quarter of it about as often."""
    uses = [use_of("a", list(range(64)), num_bytes=64 << 20)]
    order = BlockOrder.of_shards(uses, window_texts=64, seed=0)
    places = np.array([np.argsort(order.epoch(number).take(0, 64)) for number in range(400)])
    quarters = np.apply_along_axis(np.bincount, 0, places // 16, minlength=4)
    assert quarters.min() > 60
    assert quarters.max() < 145


@pytest.fixture
def memory_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available, and no groups."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000000 kB\n")
    (tmp_path / "cgroup").write_text("")
    return tmp_path


def test_features_that_fit_into_half_of_the_memory_are_shuffled_fully(
    memory_files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedcache.stream")
    assert choose_shuffle([use_of("a", [0], num_bytes=4000 * MB)]) == "full"
    assert choose_shuffle([use_of("a", [0], num_bytes=4200 * MB)]) == "block"
    first, second = [record.getMessage() for record in caplog.records]
    assert first == (
        "full shuffle: the stream needs 4,000.0 MB of features; memory available: 8,192 MB"
    )
    assert second.startswith("block shuffle: the stream needs 4,200.0 MB")
    assert {record.name for record in caplog.records} == {"embedcache.stream"}


def test_dictionaries_count_among_what_the_stream_needs(memory_files: Path) -> None:
    shared = ShardUse("a", np.array([0]), np.array([0]), 0, 5000 * MB, True)
    assert choose_shuffle([shared]) == "block"


def test_compressed_shards_that_are_not_kept_are_shuffled_by_blocks(
    memory_files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedcache.stream")
    packed = ShardUse("a", np.array([0]), np.array([0]), 10, 0, False)
    assert choose_shuffle([packed]) == "block"
    assert "compressed shards that are not kept unpacked" in caplog.text


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_a_control_group_counts_and_files_in_it_do_not(
    memory_files: Path, version: int
) -> None:
    (memory_files / "cgroup").write_text("4:cpu,memory:/job/own\n" if version == 1 else "0::/job\n")
    folder = memory_files / ("fs/memory/job" if version == 1 else "fs/job")
    folder.mkdir(parents=True)
    limit, used, pages = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        if version == 1
        else ("memory.max", "memory.current", "file")
    )
    assert memory.available_bytes() == 8_000_000 * 1024
    (folder / limit).write_text(f"{1000 * MB}\n")
    (folder / used).write_text(f"{900 * MB}\n")
    assert memory.available_bytes() == 100 * MB
    (folder / "memory.stat").write_text(f"anon 1\n{pages} {700 * MB}\n")
    assert memory.available_bytes() == 800 * MB
    (folder / limit).write_text("max\n")
    assert memory.available_bytes() == 8_000_000 * 1024


def test_machine_that_tells_nothing_is_taken_to_have_enough(memory_files: Path) -> None:
    (memory_files / "meminfo").unlink()
    (memory_files / "cgroup").unlink()
    assert memory.available_bytes() is None
    assert choose_shuffle([use_of("a", [0], num_bytes=1 << 50)]) == "full"


def test_this_machine_tells_how_much_memory_is_available() -> None:
    available = memory.available_bytes()
    assert available is not None
    assert available > 10 * MB
    assert orders.WINDOW_BYTES > orders.BLOCK_BYTES
