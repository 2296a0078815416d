"""BERT's tokeniser as TensorFlow operations, so that it can be part of a SavedModel.

It needs no operation but TensorFlow's own. Characters are treated by a table
(`embedcache.modules.bert_characters`); WordPiece, the greedy longest match of Devlin et al.
(2019), runs once over a batch's distinct words, many words at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import tensorflow as tf

from embedcache.errors import ModuleError
from embedcache.modules.bert_characters import (
    KIND_BITS,
    PAGE_SIZE,
    BertCharacterKind,
    build_characters,
)
from embedcache.modules.saving import line_numbers
from embedcache.modules.wordpiece import (
    CONTINUATION,
    MAX_WORD_CHARACTERS,
    load_vocab,
    longest_piece,
)

__all__ = ["BertTokenizer", "SpecialPieces"]

_TEXT_SPEC = tf.TensorSpec([None], tf.string, name="text")
_KIND_MASK = (1 << KIND_BITS) - 1
_ABSENT = -1


@dataclass(frozen=True, slots=True)
class SpecialPieces:
    """The ids of the pieces that stand for no text.

    Attributes:
        padding: ``[PAD]``.
        unknown: ``[UNK]``.
        start: ``[CLS]``, before the first segment.
        end: ``[SEP]``, after each segment.
        mask: ``[MASK]``.
    """

    padding: int
    unknown: int
    start: int
    end: int
    mask: int

    @classmethod
    def from_vocab(cls, vocab: dict[str, int], path: Path) -> Self:
        """Find the special pieces in the vocabulary that was read from `path`.

        Raises:
            ModuleError: one of them is not there.
        """
        pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        missing = [piece for piece in pieces if piece not in vocab]
        if missing:
            raise ModuleError(f"{path} lacks {', '.join(missing)}: is it the vocabulary of a BERT?")
        return cls(*(vocab[piece] for piece in pieces))


class _Characters(NamedTuple):
    """The characters of a batch that stand in words, all texts' one after the other.

    Attributes:
        codes: (characters,) int32, the code points, normalised.
        word_splits: (words + 1,) int64, the characters of each word.
        word_rows: (words,) int64, the text that each word stands in.
        num_texts: scalar int64.
        byte_starts: (characters,) int64, where the original character begins in its text.
        byte_sizes: (characters,) int64, the UTF-8 length of the original character.
    """

    codes: Any
    word_splits: Any
    word_rows: Any
    num_texts: Any
    byte_starts: Any
    byte_sizes: Any


class _Pieces(NamedTuple):
    """A batch's pieces, all texts' one after the other, and how they lie in words and texts.

    Attributes:
        ids: (pieces,) int32.
        starts: (pieces,) int64, where in the UTF-8 of its text each piece begins.
        ends: (pieces,) int64, where it ends (half open).
        word_splits: (words + 1,) int64, the pieces of each word.
        text_splits: (texts + 1,) int64, the words of each text.
    """

    ids: Any
    starts: Any
    ends: Any
    word_splits: Any
    text_splits: Any


class BertTokenizer(tf.Module):  # type: ignore[misc]
    """Splits texts into BERT's word pieces.

    What Hugging Face's BertTokenizer does, but that the name of a special piece which stands
    in a text, such as ``[SEP]``, is text like any other, as in google-research/bert. Total:
    any bytes are accepted (what is not UTF-8 is left out), and a text may have no piece.

    Attributes:
        special: the ids of the special pieces; no text has them but ``[UNK]``.
        vocab_size: number of pieces.
    """

    def __init__(
        self,
        vocab: Path,
        *,
        lower_case: bool,
        strip_accents: bool | None = None,
        split_ideographs: bool = True,
    ) -> None:
        """Read a vocabulary; it is an asset of a SavedModel that holds the tokeniser.

        Args:
            vocab: a `vocab.txt`, one piece a line, which must stay until it was saved.
            lower_case: whether texts are lower-cased.
            strip_accents: whether accents are dropped; None: if texts are lower-cased.
            split_ideographs: whether a CJK ideograph is a word of its own.

        Raises:
            ModuleError: the file cannot be read, holds a piece twice, or lacks a special one.
        """
        super().__init__(name="bert_tokenizer")
        piece_ids = load_vocab(vocab)
        self.special = SpecialPieces.from_vocab(piece_ids, vocab)
        self.vocab_size = len(piece_ids)
        self._longest_piece = longest_piece(piece_ids)
        characters = build_characters(
            lower_case=lower_case,
            strip_accents=lower_case if strip_accents is None else strip_accents,
            split_ideographs=split_ideographs,
        )
        self._has_expansions = len(characters.expansions) > 0
        self._page_starts = _frozen(characters.starts, "page_starts")
        self._page_entries = _frozen(characters.entries, "page_entries")
        self._expansion_splits = _frozen(characters.expansion_splits, "expansion_splits")
        self._expansions = _frozen(characters.expansions, "expansions")
        self._vocab_asset = tf.saved_model.Asset(str(vocab))
        self._piece_ids = tf.lookup.StaticHashTable(
            line_numbers(self._vocab_asset), _ABSENT, experimental_is_anonymous=True
        )

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def tokenize(self, text: Any) -> Any:
        """Split texts: (batch,) string → RaggedTensor (batch, None) int32, the piece ids."""
        pieces = _Pieces(*self._find_pieces(text))
        return _by_text(pieces, pieces.ids)

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def tokenize_words(self, text: Any) -> Any:
        """Split texts: (batch,) string → RaggedTensor (batch, words, pieces) int32."""
        pieces = _Pieces(*self._find_pieces(text))
        words = tf.RaggedTensor.from_row_splits(pieces.ids, pieces.word_splits, validate=False)
        return tf.RaggedTensor.from_row_splits(words, pieces.text_splits, validate=False)

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def tokenize_with_offsets(self, text: Any) -> Any:
        """Split texts, and say where in them each piece was found.

        Args:
            text: (batch,) string.

        Returns:
            Three RaggedTensors (batch, None): the piece ids, int32, and where in the UTF-8 of
            the text as it was given the piece begins and ends (half open), int64 bytes.
            Pieces of one character that was decomposed share its bytes.
        """
        pieces = _Pieces(*self._find_pieces(text))
        columns = (pieces.ids, pieces.starts, pieces.ends)
        return tuple(_by_text(pieces, column) for column in columns)

    # Traced once for the three above; what one of them does not need, TensorFlow prunes.
    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def _find_pieces(self, text: Any) -> Any:
        """Split texts: (batch,) string → the fields of `_Pieces`."""
        characters = self._read(text)
        letters = tf.RaggedTensor.from_row_splits(
            characters.codes, characters.word_splits, validate=False
        )
        # Each distinct word is split once.
        words, which = tf.unique(tf.strings.unicode_encode(letters, "UTF-8"), tf.int64)
        ids, lengths, splits = self._split_words(words)
        counts = tf.gather(splits[1:] - splits[:-1], which)
        first = tf.gather(splits, which)
        places = tf.ragged.range(first, first + counts).values
        # No character is left out between the pieces of all words.
        limits = tf.cumsum(tf.gather(lengths, places))
        starts, last = limits - tf.gather(lengths, places), limits - 1
        rows = tf.RaggedTensor.from_value_rowids(
            which, characters.word_rows, nrows=characters.num_texts, validate=False
        )
        return (
            tf.cast(tf.gather(ids, places), tf.int32),
            tf.gather(characters.byte_starts, starts),
            tf.gather(characters.byte_starts, last) + tf.gather(characters.byte_sizes, last),
            tf.concat([[tf.constant(0, tf.int64)], tf.cumsum(counts)], 0),
            rows.row_splits,
        )

    def _read(self, text: Any) -> _Characters:
        """Decode texts, normalise their characters, and find their words."""
        decoded, offsets = tf.strings.unicode_decode_with_offsets(text, "UTF-8")
        treated, source = self._normalize(decoded.values)
        kinds = tf.bitwise.bitwise_and(treated, _KIND_MASK)
        rows = tf.gather(decoded.value_rowids(), source)
        # A word begins at each character that stands alone, and at another one that does not
        # follow its like in the same text.
        is_word = tf.equal(kinds, BertCharacterKind.WORD)
        after_word = tf.concat([[False], is_word], 0)[:-1]
        same_row = tf.equal(rows, tf.concat([[tf.constant(-1, tf.int64)], rows], 0)[:-1])
        begins = tf.equal(kinds, BertCharacterKind.ALONE) | (is_word & ~(after_word & same_row))
        kept = tf.where(kinds != BertCharacterKind.SPACE)[:, 0]
        source = tf.gather(source, kept)
        first = tf.where(tf.gather(begins, kept))[:, 0]
        return _Characters(
            codes=tf.bitwise.right_shift(tf.gather(treated, kept), KIND_BITS),
            word_splits=tf.concat([first, [tf.size(source, out_type=tf.int64)]], 0),
            word_rows=tf.gather(tf.gather(rows, kept), first),
            num_texts=tf.size(text, out_type=tf.int64),
            byte_starts=tf.gather(offsets.values, source),
            byte_sizes=_utf8_sizes(tf.gather(decoded.values, source)),
        )

    def _normalize(self, codes: Any) -> tuple[Any, Any]:
        """Return what code points become, with the place in `codes` that each comes from.

        Args:
            codes: (characters,) int32.

        Returns:
            (outputs,) int32, normalised code points, each shifted by `KIND_BITS` and with its
            kind in the low bits; and (outputs,) int64, ascending.
        """
        pages = tf.gather(self._page_starts, codes // PAGE_SIZE)
        entries = tf.gather(self._page_entries, pages + codes % PAGE_SIZE)
        kinds = tf.bitwise.bitwise_and(entries, _KIND_MASK)
        kept = tf.where(kinds != BertCharacterKind.DROPPED)[:, 0]
        treated = tf.gather(codes * (1 << KIND_BITS) + entries, kept)
        if not self._has_expansions:
            return treated, kept
        expanded = tf.gather(tf.equal(kinds, BertCharacterKind.EXPANDED), kept)
        expansion_rows = tf.gather(tf.bitwise.right_shift(entries, KIND_BITS), kept)
        # Few languages need it, and it costs as much as all the rest.
        outputs: tuple[Any, Any] = tf.cond(
            tf.reduce_any(expanded),
            lambda: self._expand(treated, kept, tf.where(expanded, expansion_rows, _ABSENT)),
            lambda: (treated, kept),
        )
        return outputs

    def _expand(self, treated: Any, source: Any, expansion_rows: Any) -> tuple[Any, Any]:
        """Put several outputs where a character has a row of expansions, not `_ABSENT`."""
        expanded = expansion_rows != _ABSENT
        row = tf.maximum(expansion_rows, 0)
        first = tf.gather(self._expansion_splits, row)
        counts = tf.where(expanded, tf.gather(self._expansion_splits, row + 1) - first, 1)
        place = tf.repeat(tf.range(tf.size(counts)), counts)
        outputs = tf.gather(first, place) + tf.ragged.range(counts).values
        is_output = tf.gather(expanded, place)
        outputs = tf.gather(self._expansions, tf.where(is_output, outputs, 0))
        return tf.where(is_output, outputs, tf.gather(treated, place)), tf.gather(source, place)

    def _split_words(self, words: Any) -> tuple[Any, Any, Any]:
        """Split distinct words.

        Args:
            words: (words,) string.

        Returns:
            ids: (pieces,) int64, the pieces of the first word, of the second, …
            lengths: (pieces,) int64, how many of the word's characters each piece stands for.
            splits: (words + 1,) int64, where a word's pieces begin.
        """
        sizes = tf.cast(tf.strings.length(words, "UTF8_CHAR"), tf.int64)
        whole = tf.where(sizes <= MAX_WORD_CHARACTERS, self._piece_ids.lookup(words), _ABSENT)
        # Most words are pieces themselves; the others are split, or become unknown.
        hard = tf.where((whole == _ABSENT) & (sizes <= MAX_WORD_CHARACTERS))[:, 0]
        owners, ids, lengths = self._match(tf.gather(words, hard), tf.gather(sizes, hard))
        owners = tf.gather(hard, owners)
        covered = tf.math.unsorted_segment_sum(lengths, owners, tf.size(words))
        is_split = tf.equal(covered, sizes)
        kept = tf.where(tf.gather(is_split, owners))[:, 0]
        single = tf.where(~is_split)[:, 0]
        whole = tf.where(whole == _ABSENT, tf.constant(self.special.unknown, tf.int64), whole)
        owners = tf.concat([single, tf.gather(owners, kept)], 0)
        # Stable: a word's pieces stay in the order in which they were found.
        order = tf.argsort(owners, stable=True)
        counts = tf.math.bincount(tf.cast(owners, tf.int32), minlength=tf.size(words))
        splits = tf.concat([[0], tf.cumsum(counts)], 0)
        ids = tf.concat([tf.gather(whole, single), tf.gather(ids, kept)], 0)
        lengths = tf.concat([tf.gather(sizes, single), tf.gather(lengths, kept)], 0)
        return tf.gather(ids, order), tf.gather(lengths, order), tf.cast(splits, tf.int64)

    def _match(self, words: Any, sizes: Any) -> tuple[Any, Any, Any]:
        """Find the longest pieces from the left, of all words at a time.

        Args:
            words: (words,) string.
            sizes: (words,) int64, their characters.

        Returns:
            Three of (pieces,) int64: the word that a piece is of, its id, and its characters.
            A word's pieces come in their order, but other words' between them. They end
            before the word does where no piece fits.
        """
        nothing = tf.zeros([0], tf.int64)

        def step(active: Any, begins: Any, owners: Any, ids: Any, lengths: Any) -> Any:
            which, found_ids, found_lengths = self._match_next(
                tf.gather(words, active), begins, tf.gather(sizes, active)
            )
            active, begins = tf.gather(active, which), tf.gather(begins, which) + found_lengths
            owners = tf.concat([owners, active], 0)
            ids = tf.concat([ids, found_ids], 0)
            lengths = tf.concat([lengths, found_lengths], 0)
            unfinished = tf.where(begins < tf.gather(sizes, active))[:, 0]
            return (
                tf.gather(active, unfinished),
                tf.gather(begins, unfinished),
                owners,
                ids,
                lengths,
            )

        every = tf.range(tf.size(words, out_type=tf.int64))
        shapes = [tf.TensorShape([None])] * 5
        _, _, owners, ids, lengths = tf.while_loop(
            lambda active, *_: tf.size(active) > 0,
            step,
            [every, tf.zeros_like(every), nothing, nothing, nothing],
            shape_invariants=shapes,
        )
        return owners, ids, lengths

    def _match_next(self, words: Any, begins: Any, sizes: Any) -> tuple[Any, Any, Any]:
        """Find the longest piece of each word that begins at a character.

        Returns:
            Three of (found,) int64: which words have one, its id, and its characters.
        """
        longest = tf.minimum(sizes - begins, self._longest_piece)
        candidates = tf.ragged.range(longest, 0, -1)
        which, lengths = candidates.value_rowids(), candidates.values
        begins = tf.gather(begins, which)
        texts = tf.strings.substr(tf.gather(words, which), begins, lengths, "UTF8_CHAR")
        prefixes = tf.where(begins > 0, CONTINUATION, "")
        ids = self._piece_ids.lookup(tf.strings.join([prefixes, texts]))
        found = tf.where(ids != _ABSENT)[:, 0]
        which = tf.gather(which, found)
        # A word's candidates come longest first: only the first that was found counts.
        is_first = which != tf.concat([[tf.constant(-1, tf.int64)], which], 0)[:-1]
        found = tf.boolean_mask(found, is_first)
        return tf.boolean_mask(which, is_first), tf.gather(ids, found), tf.gather(lengths, found)


def _by_text(pieces: _Pieces, column: Any) -> Any:
    """Return a column of pieces as a RaggedTensor (batch, None)."""
    splits = tf.gather(pieces.word_splits, pieces.text_splits)
    return tf.RaggedTensor.from_row_splits(column, splits, validate=False)


def _utf8_sizes(codes: Any) -> Any:
    """Return how many bytes code points take in UTF-8, (characters,) int64."""
    limits = tf.constant([0x80, 0x800, 0x10000], tf.int32)
    longer = tf.cast(codes[:, tf.newaxis] >= limits, tf.int64)
    return 1 + tf.reduce_sum(longer, axis=1)


def _frozen(values: Any, name: str) -> Any:
    """Return a variable that holds a table and is never trained."""
    return tf.Variable(values, trainable=False, name=name)
