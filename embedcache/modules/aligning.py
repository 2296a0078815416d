"""Where a module's tokens stand in the text that it made them of. Needs no TensorFlow.

A module's own tokenizer gives strings that it has simplified: lower-cased, without
accents. They are looked up in the text, simplified alike, from left to right.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import AnyStr

import numpy as np
from numpy.typing import NDArray

from embedcache.modules.splitting import Ranges, spans_of_ranges
from embedcache.ragged import expand_ranges, splits_of_lengths

_IS_KEPT = np.arange(256) > ord(" ")
"""Bytes that are neither white space nor control characters of ASCII."""


def align_texts(
    texts: Sequence[bytes], tokens: Sequence[bytes], row_splits: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """The byte range of each token of n texts in its own text.

    Nearly always a text's tokens, one after the other, are the text in lower case without its
    white space: then the ranges are counted, for all such texts in one go. The others are
    aligned token by token, which took four times as long on SST-2.

    Args:
        texts: n texts as UTF-8.
        tokens: Their tokens, T of them.
        row_splits: Shape (n + 1,), int64.

    Returns:
        Shape (T, 2), uint32; see `align_tokens`.
    """
    content = np.frombuffer(b"".join(texts).lower(), np.uint8)
    text_ends = splits_of_lengths([len(text) for text in texts])
    kept = np.flatnonzero(_IS_KEPT[content])
    kept_ends = np.searchsorted(kept, text_ends)
    joined = np.frombuffer(b"".join(tokens), np.uint8)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    joined_ends = splits_of_lengths(lengths)[row_splits]
    is_simple = np.diff(kept_ends) == np.diff(joined_ends)
    if not (is_simple.all() and np.array_equal(content[kept], joined)):
        is_simple &= _rows_equal(content[kept], kept_ends, joined, joined_ends, is_simple)
    is_simple &= ~_has_empty(lengths, row_splits)
    spans = np.zeros((len(tokens), 2), np.uint32)
    counts = np.diff(row_splits)
    simple = np.flatnonzero(is_simple)
    chosen = expand_ranges(row_splits[:-1][simple], counts[simple])
    # The place of each such token among its text's kept bytes, and from there in the text.
    text_of = np.repeat(simple, counts[simple])
    last = splits_of_lengths(lengths)[1:][chosen] - joined_ends[text_of] + kept_ends[text_of]
    spans[chosen, 0] = kept[last - lengths[chosen]] - text_ends[text_of]
    spans[chosen, 1] = kept[last - 1] + 1 - text_ends[text_of]
    for text in np.flatnonzero(~is_simple).tolist():
        row = slice(int(row_splits[text]), int(row_splits[text + 1]))
        spans[row] = spans_of_ranges([align_tokens(texts[text], tokens[row])])
    return spans


def _rows_equal(
    left: NDArray[np.uint8],
    left_ends: NDArray[np.int64],
    right: NDArray[np.uint8],
    right_ends: NDArray[np.int64],
    is_asked: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Whether rows of bytes are equal, (n,) bool; asked only for some, of equal lengths."""
    asked = np.flatnonzero(is_asked)
    sizes = np.diff(left_ends)[asked]
    same = (
        left[expand_ranges(left_ends[:-1][asked], sizes)]
        == right[expand_ranges(right_ends[:-1][asked], sizes)]
    )
    differing = np.unique(np.repeat(asked, sizes)[~same])
    equal = np.ones(len(is_asked), np.bool_)
    equal[differing] = False
    return equal


def _has_empty(lengths: NDArray[np.int64], row_splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which texts have a token without bytes, (n,) bool."""
    empty = np.flatnonzero(lengths == 0)
    found = np.zeros(len(row_splits) - 1, np.bool_)
    found[np.searchsorted(row_splits, empty, side="right") - 1] = True
    return found


def align_tokens(text: bytes, tokens: Sequence[bytes]) -> Ranges:
    """The byte range of each token in its text.

    Args:
        text: UTF-8.
        tokens: What a tokenizer made of it, in order.

    Returns:
        Half-open ranges that ascend. A token that is not found, because the tokenizer
        changed it beyond case and accents, gets an empty range where it was looked for.
    """
    if text.isascii():
        return _find_in_order(text.lower(), [token.lower() for token in tokens])
    simple, starts, ends = _simplify(text.decode(errors="replace"))
    wanted = [_simplify(token.decode(errors="replace"))[0] for token in tokens]
    found = _find_in_order(simple, wanted)
    return [(starts[a], ends[b - 1]) if a < b else (_place(starts, ends, a),) * 2 for a, b in found]


def _find_in_order(text: AnyStr, tokens: Sequence[AnyStr]) -> Ranges:
    position = 0
    ranges: Ranges = []
    for token in tokens:
        start = text.find(token, position)
        if start < 0:
            ranges.append((position, position))
        else:
            position = start + len(token)
            ranges.append((start, position))
    return ranges


def _simplify(text: str) -> tuple[str, list[int], list[int]]:
    """Without marks and case; and for each character of that the bytes it comes from.

    Folded, not lower-cased: a capital sigma has two small ones.
    """
    simple: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    place = 0
    for character in text:
        size = len(character.encode())
        for base in unicodedata.normalize("NFD", character):
            if unicodedata.category(base) != "Mn":
                folded = base.casefold()
                simple += folded
                starts += [place] * len(folded)
                ends += [place + size] * len(folded)
        place += size
    return "".join(simple), starts, ends


def _place(starts: list[int], ends: list[int], position: int) -> int:
    """The byte at which a character of the simplified text begins, or the end of it."""
    return starts[position] if position < len(starts) else (ends[-1] if ends else 0)
