"""BERT's tokeniser out of TensorFlow's own operations, for the tiny preprocessors.

It does what `vocabulary.text_pieces` says, but that accents are known for the common Latin
letters only: TensorFlow has no Unicode decomposition outside tensorflow-text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub_modules.vocabulary import (
    ASCII_SYMBOLS,
    MAX_PIECE_CHARS,
    MAX_WORD_CHARS,
    PIECES,
    UNKNOWN,
)

_ACCENTS = (
    ("[àáâãäå]", "a"),
    ("ç", "c"),
    ("[èéêë]", "e"),
    ("[ìíîï]", "i"),
    ("ñ", "n"),
    ("[òóôõö]", "o"),
    ("[ùúûü]", "u"),
    (r"\p{Mn}", ""),
)


def piece_table(file: Path) -> Any:
    """A table piece → int64 line number of ``vocab.txt``; -1 for what is no piece."""
    import tensorflow as tf

    initializer = tf.lookup.TextFileInitializer(
        str(file),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return tf.lookup.StaticHashTable(initializer, -1)


def tokenize_function(table: Any, *, lower_case: bool, grouped: bool) -> Callable[[Any], Any]:
    """Strings (B,) → int32 RaggedTensor (B, words, pieces), or (B, pieces) if not grouped."""
    import tensorflow as tf

    def tokenize(sentences: Any) -> Any:
        words = _split_words(sentences, lower_case=lower_case)
        pieces = words.with_values(_word_pieces(table, words.values))
        # Known shapes, without which a caller of the loaded object gets none.
        splits = tf.ensure_shape(pieces.row_splits, [None])
        pieces = tf.RaggedTensor.from_row_splits(pieces.values, splits, validate=False)
        return pieces if grouped else pieces.merge_dims(1, 2)

    return tokenize


def _split_words(sentences: Any, *, lower_case: bool) -> Any:
    import tensorflow as tf

    text = tf.strings.regex_replace(sentences, r"[\t\n\r\pZ]", " ")
    text = tf.strings.regex_replace(text, r"[\pC\x{FFFD}]", "")
    text = tf.strings.regex_replace(text, r"([\x{4E00}-\x{9FFF}])", r" \1 ")
    if lower_case:
        text = tf.strings.lower(text, encoding="utf-8")
        for accented, plain in _ACCENTS:
            text = tf.strings.regex_replace(text, accented, plain)
    symbols = "".join(f"\\{symbol}" for symbol in ASCII_SYMBOLS)
    text = tf.strings.regex_replace(text, rf"([\pP{symbols}])", r" \1 ")
    return tf.strings.split(text)


def _word_pieces(table: Any, words: Any) -> Any:
    """Words (n,) → int32 RaggedTensor (n, pieces): greedy, the longest match first."""
    import tensorflow as tf

    lengths = tf.strings.length(words, "UTF8_CHAR")

    def step(start: Any, found: Any, bad: Any) -> tuple[Any, Any, Any]:
        piece, size = _longest_piece(table, words, start, lengths)
        inside = start < lengths
        bad |= inside & (piece < 0)
        start = tf.where(inside & (piece >= 0), start + size, lengths)
        column = tf.where(inside, piece, -1)
        return start, tf.concat([found, column[:, None]], axis=1), bad

    none = tf.zeros([tf.shape(words)[0], 0], tf.int32)
    state = (tf.zeros_like(lengths), none, lengths > MAX_WORD_CHARS)
    _, found, bad = tf.while_loop(
        lambda start, *_: tf.reduce_any(start < lengths),
        step,
        state,
        shape_invariants=(lengths.shape, tf.TensorShape([None, None]), lengths.shape),
    )
    found = tf.where(bad[:, None], -1, found)
    # An unknown word is one piece, whatever was found of it.
    head = tf.where(bad, PIECES.index(UNKNOWN), -1)[:, None]
    found = tf.concat([head, found], axis=1)
    return tf.ragged.boolean_mask(found, found >= 0)


def _longest_piece(table: Any, words: Any, start: Any, lengths: Any) -> tuple[Any, Any]:
    """The longest piece of each word at ``start``: its id (-1 if none) and its characters."""
    import tensorflow as tf

    # Beyond the end of a word that is finished there is nothing to cut.
    inside = tf.minimum(start, tf.maximum(lengths - 1, 0))
    best, size = tf.fill(tf.shape(start), -1), tf.zeros_like(start)
    for chars in range(MAX_PIECE_CHARS, 0, -1):
        cut = tf.strings.substr(words, inside, tf.fill(tf.shape(start), chars), "UTF8_CHAR")
        marked = tf.where(start > 0, tf.strings.join(["##", cut]), cut)
        piece = tf.cast(table.lookup(marked), tf.int32)
        better = (best < 0) & (piece >= 0)
        best = tf.where(better, piece, best)
        size = tf.where(better, tf.minimum(chars, lengths - inside), size)
    return best, size
