"""Keys: golden values (made with coreutils' ``b2sum --length=128``), order, bad text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import CorpusError
from embedcache.keys import (
    KEY_BYTES,
    key_of_text,
    keys_of_texts,
    keys_of_utf8,
    sort_order,
    split_keys,
    utf8_of_text,
)

GOLDEN = {
    "": "cae66941d9efbd404e4d88758ea67670",
    "é": "d4b1b0202b21bb84e60a3d272ecab0db",
    "a good film": "c66c614c0c589839d36c8e03e7b76e1e",
    "bad": "5a711247b2b24378bbabfb6173b1bf29",
}
# Few distinct bytes, so that many keys agree in their first half, or wholly.
KEYS = st.lists(st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16).map(bytes))


def _array(keys: list[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def test_keys_are_those_of_every_version() -> None:
    keys = keys_of_texts(list(GOLDEN))
    assert [key.tobytes().hex() for key in keys] == list(GOLDEN.values())
    assert keys.shape == (4, 16)
    assert keys.dtype == np.uint8
    assert [key_of_text(text).hex() for text in GOLDEN] == list(GOLDEN.values())
    assert keys_of_utf8(text.encode() for text in GOLDEN).tobytes() == keys.tobytes()


def test_no_texts_have_no_keys() -> None:
    assert keys_of_texts([]).shape == (0, 16)


def test_nothing_is_normalised() -> None:
    variants = ["é", "e\u0301", "É", "é ", " é", "é\n", "\ufeffé"]
    assert len({key_of_text(text) for text in variants}) == len(variants)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_lone_surrogate_is_refused_with_its_place(text: str) -> None:
    number = len(text) // 2 + 1
    with pytest.raises(CorpusError, match=rf"surrogate at character {number},") as caught:
        key_of_text(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError):
        keys_of_texts(["fine", text])


def test_text_outside_the_basic_plane_is_taken() -> None:
    assert utf8_of_text("\U0001f600") == b"\xf0\x9f\x98\x80"


@given(KEYS)
def test_sort_order_is_that_of_the_bytes(keys: list[bytes]) -> None:
    order = sort_order(_array(keys)).tolist()
    assert order == sorted(range(len(keys)), key=keys.__getitem__)


@given(KEYS)
def test_halves_are_big_endian(keys: list[bytes]) -> None:
    high, low = split_keys(_array(keys))
    assert high.dtype == low.dtype == np.uint64
    whole = [(int(h) << 64) + int(w) for h, w in zip(high, low, strict=True)]
    assert whole == [int.from_bytes(key, "big") for key in keys]
