"""Text → key: the 16-byte BLAKE2b of the text's exact UTF-8 bytes.

Nothing is normalised: two texts that differ in one byte have two keys. 128 bits make a
collision among 10^9 texts less likely than 10^-20 (birthday bound n²/2^129).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorpusError

KEY_BYTES = 16

Keys = NDArray[np.uint8]
"""Keys of n texts, shape (n, 16)."""


def utf8_of_text(text: str) -> bytes:
    """The bytes that a text's key is made of.

    Raises:
        CorpusError: if the text holds a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"the text has a lone surrogate at character {error.start + 1}, which UTF-8 cannot"
            " hold; remove it"
        ) from None


def key_of_text(text: str) -> bytes:
    """The 16-byte key of one text."""
    return blake2b(utf8_of_text(text), digest_size=KEY_BYTES).digest()


def keys_of_utf8(texts: Iterable[bytes]) -> Keys:
    """The keys of UTF-8 texts, shape (n, 16), in their order."""
    joined = b"".join([blake2b(text, digest_size=KEY_BYTES).digest() for text in texts])
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)


def keys_of_texts(texts: Sequence[str]) -> Keys:
    """The keys of texts, shape (n, 16), in their order."""
    return keys_of_utf8([utf8_of_text(text) for text in texts])


def split_keys(keys: Keys) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The high and the low 8 bytes of keys as big-endian integers, each of shape (n,).

    Comparing the pairs (high, low) orders keys as comparing their bytes does.
    """
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def sort_order(keys: Keys) -> NDArray[np.intp]:
    """The stable permutation that puts keys into ascending byte order, shape (n,)."""
    high, low = split_keys(keys)
    return np.lexsort((low, high))
