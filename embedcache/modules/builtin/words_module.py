"""The SavedModel `en-words-128`: core TensorFlow operations, called like `nnlm-en-dim128/2`.

A text is split into words and single punctuation marks; each token's vector is looked up in
an int8 table with one scale a row; the text's vector is the sum of its tokens' over √n.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedcache.modules.builtin.characters import PAGE_SIZE, CharacterKind, CharacterPages
from embedcache.modules.saving import line_numbers

__all__ = ["WordTokenizer", "WordsModule", "quantize_rows", "save_words_module"]

_TEXT_SPEC = tf.TensorSpec([None], tf.string, name="text")
_MAX_CODE = 127
# 4 bits of scale times 7 bits of code fit the 11 bits of float16's significand.
_SCALE_BITS = 4


def quantize_rows(
    vectors: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round each row to int8 with a scale of its own, such that float16 holds every value.

    A scale is the smallest number of four significant bits with which the row's largest
    value is at most 127, so their product has at most 11 significant bits, like float16.

    Args:
        vectors: (rows, dim) floats, not much smaller than 1: below a scale of 2⁻²¹ (a row
            without any value above 6·10⁻⁵) float16 would no longer be exact.

    Returns:
        codes: (rows, dim) int8, -127 to 127.
        scales: (rows,) float32; the vector is ``codes * scales[:, None]``. 1 for zero rows.
    """
    wide = np.asarray(vectors, np.float64)
    needed = np.abs(wide).max(axis=1, initial=0.0) / _MAX_CODE
    fraction, exponent = np.frexp(needed)
    scales = np.ldexp(np.ceil(np.ldexp(fraction, _SCALE_BITS)), exponent - _SCALE_BITS)
    scales = np.where(needed > 0, scales, 1.0)
    codes = np.rint(wide / scales[:, np.newaxis])
    return codes.astype(np.int8), scales.astype(np.float32)


class WordTokenizer(tf.Module):  # type: ignore[misc]
    """Splits texts into lower-case words without accents and single punctuation marks.

    Total: any bytes are accepted (what is not UTF-8 becomes U+FFFD), and a text may have no
    token at all. Idempotent: a token that is tokenised gives itself.
    """

    def __init__(self, pages: CharacterPages) -> None:
        super().__init__(name="word_tokenizer")
        self._page_starts = tf.Variable(pages.starts, trainable=False, name="page_starts")
        self._page_entries = tf.Variable(pages.entries, trainable=False, name="page_entries")

    def tokenize(self, text: Any) -> Any:
        """Split texts: (batch,) string → RaggedTensor (batch, None) of string."""
        characters = tf.strings.unicode_decode(text, "UTF-8")
        codes, kinds = self._simplify(characters.values)
        rows = characters.value_rowids()
        codes, kinds, rows = _keep(kinds != CharacterKind.DROPPED, codes, kinds, rows)
        # A token begins at each punctuation mark, and at a word's character that does not
        # follow another one of the same text.
        is_word = tf.equal(kinds, CharacterKind.WORD)
        after_word = tf.concat([[False], is_word], 0)[:-1]
        same_row = tf.equal(rows, tf.concat([[tf.constant(-1, tf.int64)], rows], 0)[:-1])
        begins = tf.equal(kinds, CharacterKind.PUNCTUATION) | (is_word & ~(after_word & same_row))
        codes, begins, rows = _keep(kinds != CharacterKind.SPACE, codes, begins, rows)
        first = tf.where(begins)[:, 0]
        splits = tf.concat([first, [tf.size(codes, out_type=tf.int64)]], 0)
        letters = tf.RaggedTensor.from_row_splits(codes, splits, validate=False)
        return tf.RaggedTensor.from_value_rowids(
            tf.strings.unicode_encode(letters, "UTF-8"),
            tf.gather(rows, first),
            nrows=tf.size(text, out_type=tf.int64),
            validate=False,
        )

    def _simplify(self, codes: Any) -> tuple[Any, Any]:
        """Return the simplified code points and their kinds, both (characters,) int32."""
        starts = tf.gather(self._page_starts, codes // PAGE_SIZE)
        entries = tf.gather(self._page_entries, starts + codes % PAGE_SIZE)
        return codes + tf.bitwise.right_shift(entries, 2), tf.bitwise.bitwise_and(entries, 3)


def _keep(chosen: Any, *columns: Any) -> list[Any]:
    """Return the chosen entries of columns of equal length."""
    places = tf.where(chosen)[:, 0]
    return [tf.gather(column, places) for column in columns]


class WordsModule(tf.Module):  # type: ignore[misc]
    """The root object of the SavedModel.

    Its public attributes are those of a TF2 Hub module: `__call__`, `tokenize`,
    `variables`, `trainable_variables` (empty) and `regularization_losses` (empty).
    """

    # tf.Module computes these two; a SavedModel keeps only what is an attribute.
    variables: Any = ()
    trainable_variables: Any = ()

    def __init__(
        self,
        vocab_file: Path,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.float32],
        pages: CharacterPages,
    ) -> None:
        """Build the module.

        Args:
            vocab_file: one token a line; line i has row i. Saved as an asset.
            codes: (vocab, dim) int8.
            scales: (vocab,) float32.
            pages: what the tokeniser does to each character.
        """
        super().__init__(name="words_module")
        num_tokens, dim = codes.shape
        # The row after the last token's is the unknown tokens': zeros.
        padded = np.concatenate([codes, np.zeros((1, dim), np.int8)])
        self._codes = tf.Variable(padded, trainable=False, name="codes")
        self._scales = tf.Variable(np.append(scales, 1.0), False, dtype=tf.float32, name="scales")
        self._tokenizer = WordTokenizer(pages)
        self._vocab_asset = tf.saved_model.Asset(str(vocab_file))
        self._rows = tf.lookup.StaticHashTable(
            line_numbers(self._vocab_asset), default_value=num_tokens
        )
        self.variables = [self._codes, self._scales, *self._tokenizer.variables]
        self.trainable_variables: Any = []
        self.regularization_losses: Any = []

    @tf.function(input_signature=[_TEXT_SPEC])  # type: ignore[untyped-decorator]
    def __call__(self, text: Any) -> Any:
        """Embed texts: (batch,) string → (batch, dim) float32, a sum of vectors over √n.

        n counts all of a text's tokens; a token not in the vocabulary has a zero vector,
        and a text without tokens is zeros.
        """
        tokens = self._tokenizer.tokenize(text)
        rows = self._rows.lookup(tokens.values)
        scales = tf.gather(self._scales, rows)[:, tf.newaxis]
        vectors = tf.cast(tf.gather(self._codes, rows), tf.float32) * scales
        sums = tf.math.unsorted_segment_sum(vectors, tokens.value_rowids(), tokens.nrows())
        lengths = tf.cast(tokens.row_lengths(), tf.float32)[:, tf.newaxis]
        return tf.math.divide_no_nan(sums, tf.sqrt(lengths))

    @tf.function(input_signature=[_TEXT_SPEC])  # type: ignore[untyped-decorator]
    def tokenize(self, text: Any) -> Any:
        """Split texts: (batch,) string → RaggedTensor (batch, None) of string."""
        return self._tokenizer.tokenize(text)


def save_words_module(
    directory: Path,
    tokens: Sequence[str],
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    pages: CharacterPages,
) -> None:
    """Write the SavedModel; what `directory` held of an older one is overwritten.

    Args:
        directory: where `saved_model.pb`, `variables/` and `assets/vocab.txt` go.
        tokens: the vocabulary, distinct, each one token of the tokeniser.
        codes: (len(tokens), dim) int8.
        scales: (len(tokens),) float32.
        pages: what the tokeniser does to each character.
    """
    with tempfile.TemporaryDirectory() as scratch:
        vocab_file = Path(scratch) / "vocab.txt"
        vocab_file.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        module = WordsModule(vocab_file, codes, scales, pages)
        serve = tf.function(lambda text: {"default": module(text)}, input_signature=[_TEXT_SPEC])
        tf.saved_model.save(module, str(directory), signatures=serve)
