"""Matrices as bytes, and back."""

from __future__ import annotations

import io
import pickle
import platform
import struct
import zipfile
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from embedcache.service.errors import ServiceProblem
from embedcache.service.heap import keep_freed_memory
from embedcache.service.negotiation import choose_media_type
from embedcache.wire import (
    ALIGNMENT_BYTES,
    crc32,
    json_array,
    json_of_array,
    pack_arrays,
    pack_arrays_and_fill,
    unpack_arrays,
)

_DTYPES = ["?", "u1", "<i4", "<i8", "<u4", "<f2", "<f4", "<f8"]


def _any_array(dtype: str) -> st.SearchStrategy[NDArray[Any]]:
    return arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))


_ARRAYS = st.dictionaries(
    st.text("abcdefgh_é", min_size=1, max_size=9),
    st.sampled_from(_DTYPES).flatmap(_any_array),
    max_size=5,
)


@given(given_arrays=_ARRAYS)
def test_what_was_packed_is_unpacked(given_arrays: dict[str, NDArray[Any]]) -> None:
    found = unpack_arrays(pack_arrays(given_arrays))
    assert list(found) == list(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].tobytes() == array.tobytes()
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)


@given(given_arrays=_ARRAYS)
def test_numpy_reads_what_was_packed(given_arrays: dict[str, NDArray[Any]]) -> None:
    with np.load(io.BytesIO(pack_arrays(given_arrays)), allow_pickle=False) as found:
        assert sorted(found) == sorted(given_arrays)
        for name, array in given_arrays.items():
            assert found[name].tobytes() == array.tobytes()
            assert found[name].shape == array.shape


@given(given_arrays=_ARRAYS, last=st.sampled_from(_DTYPES).flatmap(_any_array))
def test_array_that_is_filled_in_place_is_packed_as_if_it_had_been_there(
    given_arrays: dict[str, NDArray[Any]], last: NDArray[Any]
) -> None:
    def fill(out: NDArray[Any]) -> None:
        assert (out.shape, out.dtype) == (last.shape, last.dtype)
        out[...] = last

    filled = pack_arrays_and_fill(given_arrays, "last", last.shape, last.dtype, fill)
    assert bytes(filled) == pack_arrays({**given_arrays, "last": last})


def test_checksums_are_those_of_python() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 15, 4096, 100_001):
        numbers = rng.bytes(size)
        assert crc32(numbers) == zlib.crc32(numbers)
        assert crc32(numbers, 7) == zlib.crc32(numbers, 7)


@given(given_arrays=_ARRAYS)
def test_what_numpy_saved_is_unpacked(given_arrays: dict[str, NDArray[Any]]) -> None:
    file = io.BytesIO()
    np.savez(file, **given_arrays)
    found = unpack_arrays(file.getvalue())
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in given_arrays.items()
    }


def test_arrays_that_are_not_contiguous_or_big_endian_are_packed_as_their_numbers() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)
    found = unpack_arrays(pack_arrays({"turned": array.T, "every": array[::2, ::2]}))
    np.testing.assert_array_equal(found["turned"], array.T)
    np.testing.assert_array_equal(found["every"], array[::2, ::2])


def test_numbers_begin_where_a_cache_line_does() -> None:
    packed = pack_arrays({"a": np.ones(3, np.uint8), "longer_name": np.ones(5)})
    whole = np.frombuffer(packed, np.uint8).__array_interface__["data"][0]
    for array in unpack_arrays(packed).values():
        assert (array.__array_interface__["data"][0] - whole) % ALIGNMENT_BYTES == 0


def test_unpacked_arrays_are_views_and_cannot_be_written_to() -> None:
    packed = pack_arrays({"a": np.ones(3)})
    array = unpack_arrays(packed)["a"]
    assert np.shares_memory(array, np.frombuffer(packed, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


@pytest.mark.parametrize(
    "array", [np.array([{}], object), np.array(["text"]), np.array(["2026"], "M8[Y]")]
)
def test_only_numbers_are_packed(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        pack_arrays({"a": array})


class _Bomb:
    """Raises when somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def test_pickled_objects_are_refused_unread() -> None:
    file = io.BytesIO()
    np.savez(file, a=np.array([_Bomb()], object))
    with pytest.raises(SystemExit, match="unpickled"):
        pickle.loads(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="only numbers"):
        unpack_arrays(file.getvalue())


def test_compressed_arrays_are_refused() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(1 << 20))
    with pytest.raises(ValueError, match="compressed"):
        unpack_arrays(file.getvalue())


def _npz_of(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("a.npy",):
            archive.writestr(name, content)
    return file.getvalue()


def _npy(header: str, numbers: bytes = b"") -> bytes:
    encoded = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded + numbers


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(4)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4)),
        _npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1)}", bytes(4)),
        _npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 62}, 16)}}"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", bytes(8)),
        _npy("[" * 2000),
        _npy("__import__('os')"),
    ],
)
def test_what_is_no_array_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a: "):
        unpack_arrays(_npz_of(content))


def test_too_many_arrays_are_refused() -> None:
    whole = pack_arrays({"a": np.zeros(1)})
    content = zipfile.ZipFile(io.BytesIO(whole)).read("a.npy")
    with pytest.raises(ValueError, match="at most"):
        unpack_arrays(_npz_of(content, *(f"{number}.npy" for number in range(65))))


@given(place=st.integers(0, 10_000), value=st.integers(1, 255), length=st.integers(0, 10_000))
def test_damage_never_gives_other_numbers(place: int, value: int, length: int) -> None:
    expected = {"a": np.arange(20, dtype=np.int64), "b": np.ones((3, 5), np.float16)}
    packed = bytearray(pack_arrays(expected))
    packed[place % len(packed)] ^= value
    for damaged in (bytes(packed), pack_arrays(expected)[: length % len(packed)]):
        try:
            found = unpack_arrays(damaged)
        except ValueError:
            continue
        # What no checksum covers may be damaged: the archive's times, say, or a name.
        for array in found.values():
            assert any(array.tobytes() == other.tobytes() for other in expected.values())


@pytest.mark.parametrize("value", [{"ü\0": [1, None, "a\0"]}, [], "\U0001f642", 1.5])
def test_json_survives_as_an_array(value: Any) -> None:
    assert json_of_array(unpack_arrays(pack_arrays({"a": json_array(value)}))["a"]) == value


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="no JSON"):
        json_of_array(np.frombuffer(b"{", np.uint8))


@given(accept=st.text(max_size=30))
def test_any_accept_header_is_answered(accept: str) -> None:
    offered = ("application/json", "application/x-npz")
    with suppress(ServiceProblem):
        assert choose_media_type(accept, offered) in offered


def test_freed_memory_is_kept_where_the_c_library_is_glibc() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
