"""Memory of batches: used again when nobody can see the batch, and never before."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedcache.stream.buffers import BatchBuffers

HALF = np.dtype(np.float16)


def address_of(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def test_array_has_the_shape_and_dtype_asked_for_and_is_writable() -> None:
    buffers = BatchBuffers()
    for shape, dtype in (((3, 8, 5), HALF), ((2, 16, 4), np.dtype(np.float32))):
        array = buffers.array(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert address_of(array) % 64 == 0
        array[...] = 1
        assert array.sum() == array.size


def test_memory_is_used_again_once_the_array_is_gone() -> None:
    buffers = BatchBuffers()
    array = buffers.array((64, 48, 16), HALF)
    address = address_of(array)
    del array
    smaller = buffers.array((64, 8, 16), HALF)
    assert address_of(smaller) == address
    other = buffers.array((64, 8, 16), HALF)
    assert address_of(other) != address


VIEWS = {
    "a slice": lambda array: array[3:5],
    "a slice of a slice": lambda array: array[2:][1:3, :4],
    "another shape": lambda array: array.reshape(-1)[7:90],
    "another dtype": lambda array: array.view(np.uint16)[3],
    "a memory view": lambda array: memoryview(array)[2:4],
    "what another library takes as it is": np.from_dlpack,
    "an iterator": lambda array: iter(array),
    "a transposed view in a list": lambda array: [array.T],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_memory_is_not_used_again_while_a_view_is_left(kind: str) -> None:
    buffers = BatchBuffers()
    array = buffers.array((8, 8, 16), HALF)
    address = address_of(array)
    view = VIEWS[kind](array)
    del array
    for _ in range(3):
        assert address_of(buffers.array((8, 8, 16), HALF)) != address
    del view
    gc.collect()
    addresses = [address_of(kept) for kept in [buffers.array((8, 8, 16), HALF) for _ in range(4)]]
    assert address in addresses


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=60))
def test_what_is_kept_stays_as_it_was(steps: list[tuple[int, int]]) -> None:
    """Six slots, each of which holds an array or none; every step fills a new one."""
    buffers = BatchBuffers()
    kept: dict[int, tuple[int, NDArray[Any]]] = {}
    for number, (slot, length) in enumerate(steps):
        kept.pop(slot, None)
        array = buffers.array((2, length, 3), HALF)
        array[...] = number
        kept[slot] = (number, array[1:])
        for expected, view in kept.values():
            assert (view == expected).all()


def test_few_buffers_are_kept() -> None:
    buffers = BatchBuffers()
    arrays = [buffers.array((8, 8, 8), HALF) for _ in range(10)]
    memory = [weakref.ref(array) for array in arrays]
    arrays.clear()
    assert not any(reference() is not None for reference in memory)
    assert len(buffers._free) == 4


def test_threads_never_share_memory() -> None:
    buffers = BatchBuffers()
    barrier = threading.Barrier(4)

    def fill(seed: int) -> bool:
        barrier.wait()
        kept: list[NDArray[Any]] = []
        for number in range(300):
            array = buffers.array((2, 8, 8), HALF)
            array[...] = seed * 1000 + number
            kept = [*kept[-2:], array]
            for age, held in enumerate(reversed(kept)):
                if not (held == np.float16(seed * 1000 + number - age)).all():
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(4)))
