"""Encoders whose rows depend on the whole text: BERT and its kin, and ELMo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import EncodingError
from embedcache.modules.facts import ModuleFacts
from embedcache.modules.layers import LayerChoice
from embedcache.modules.pieces import IDS, MASK, TYPES, PieceTokenizer
from embedcache.modules.saved_model import inputs_of, is_string, mapped_errors, rank_of
from embedcache.modules.splitting import split_texts

Outputs = Mapping[str, Any]
"""Per-token tensors (B, L, width) by the names that `--layer` knows."""


class PieceEncoder:
    """A `SequenceEncoder` over a module that takes ids of word pieces.

    Args:
        handle: The module's, for messages.
        outputs: Ids, mask and type ids, each (B, L) int32 → the module's outputs.
        tokenizer: Texts → ids.
        facts: What the module's probe found.
        choice: The layers that make a row.
    """

    def __init__(
        self,
        handle: str,
        outputs: Callable[[Any, Any, Any], Outputs],
        tokenizer: PieceTokenizer,
        facts: ModuleFacts,
        choice: LayerChoice,
    ) -> None:
        import tensorflow as tf

        self._handle = handle
        self._tokenizer = tokenizer
        self._facts = facts
        self.dim = choice.dim
        ids = tf.TensorSpec([None, facts.fixed_length or None], tf.int32)
        # One function around the module and the choice: TensorFlow leaves out what no chosen
        # layer needs, and a free length needs no second trace.
        self._rows = tf.function(
            lambda ids, mask, types: choice.combine(outputs(ids, mask, types)),
            input_signature=[ids, ids, ids],
        )

    @property
    def num_traces(self) -> int:
        """How often TensorFlow has traced the encoder's function."""
        return int(self._rows.experimental_get_tracing_count())

    @property
    def num_special(self) -> tuple[int, int]:
        """Special tokens before and after each sequence."""
        special = self._tokenizer.special
        return len(special.start), len(special.end)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Their ids."""
        return (*self._tokenizer.special.start, *self._tokenizer.special.end)

    @property
    def fixed_length(self) -> int | None:
        """The one length that the module takes."""
        return self._facts.fixed_length or None

    @property
    def max_length(self) -> int | None:
        """Pieces of the longest sequence, special ones included."""
        return self.fixed_length or self._facts.max_length or None

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their word pieces."""
        return self._tokenizer.tokenize_texts(texts)

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """A batch of sequences → a row for each piece; see `SequenceEncoder`."""
        import tensorflow as tf

        ids, mask = self._packed(tokens, lengths)
        with mapped_errors(self._handle, f"failed on a batch of shape {ids.shape}"):
            rows = self._rows(tf.constant(ids), tf.constant(mask), tf.zeros_like(ids))
            return checked_rows(self._handle, rows, (*ids.shape, self.dim))

    def _packed(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids with special tokens around them and padding after, and their mask."""
        special = self._tokenizer.special
        before, after = self.num_special
        width = self._facts.fixed_length or tokens.shape[1] + before + after
        ids = np.full((len(tokens), width), special.padding, np.int32)
        columns = np.arange(width)
        ends = (before + lengths)[:, np.newaxis]
        inside = (columns >= before) & (columns < ends)
        ids[:, :before] = special.start
        ids[inside] = tokens[np.arange(tokens.shape[1]) < lengths[:, np.newaxis]]
        for place, piece in enumerate(special.end):
            ids[np.arange(len(ids)), before + lengths + place] = piece
        return ids, (columns < ends + after).astype(np.int32)


class ElmoEncoder:
    """A `SequenceEncoder` over a module of ELMo's kind: words in, split at spaces.

    Args:
        handle: The module's, for messages.
        function: The signature that is called: it takes words (B, L) and their number (B,),
            or whole texts that it splits at spaces itself.
        choice: The layers that make a row.
    """

    num_special = (0, 0)
    special_ids = ()
    max_length = None
    fixed_length = None

    def __init__(self, handle: str, function: Any, choice: LayerChoice) -> None:
        import tensorflow as tf

        self._handle = handle
        self.dim = choice.dim
        inputs = inputs_of(function)
        words = next(name for name, spec in inputs.items() if is_string(spec))
        counts = [name for name in inputs if name != words]
        self._takes_words = bool(counts)
        specs = [tf.TensorSpec([None, None] if counts else [None], tf.string)]
        if counts:
            specs.append(tf.TensorSpec([None], inputs[counts[0]].dtype))
            self._count_dtype = inputs[counts[0]].dtype
        names = [words, *counts]
        self._rows = tf.function(
            lambda *tensors: choice.combine(function(**dict(zip(names, tensors, strict=True)))),
            input_signature=specs,
        )

    @property
    def num_traces(self) -> int:
        """How often TensorFlow has traced the encoder's function."""
        return int(self._rows.experimental_get_tracing_count())

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their words, between spaces."""
        tokenized = split_texts(texts, ELMO_TOKENIZER)
        words = np.empty(len(tokenized.tokens), object)
        words[:] = tokenized.tokens
        return TokenizedTexts(words, tokenized.row_splits, tokenized.spans)

    def encode_batch(
        self, tokens: NDArray[np.object_], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """A batch of sequences → a row for each word; see `SequenceEncoder`."""
        import tensorflow as tf

        words = np.where(np.arange(tokens.shape[1]) < lengths[:, np.newaxis], tokens, b"")
        with mapped_errors(self._handle, f"failed on a batch of shape {words.shape}"):
            if self._takes_words:
                rows = self._rows(tf.constant(words), tf.constant(lengths, self._count_dtype))
            else:
                texts = [b" ".join(row[:n]) for row, n in zip(words, lengths, strict=True)]
                rows = self._rows(tf.constant(texts))
            shape = (len(words), int(lengths.max(initial=0)), self.dim)
            return checked_rows(self._handle, rows, shape)


ELMO_TOKENIZER = "space-nonempty"


def checked_rows(handle: str, rows: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What a module returned as an array, if it has a row for every token.

    Args:
        handle: The module's, for messages.
        rows: A tensor of TensorFlow's.
        shape: What it should have; of tokens it may have more.

    Returns:
        The tensor's own memory, not to be written to.

    Raises:
        EncodingError: if the shape is another.
    """
    fits = rows.ndim == 3 and rows.shape[0] == shape[0] and rows.shape[2] == shape[2]
    if not fits or rows.shape[1] < shape[1]:
        raise EncodingError(
            f"{handle}: returned shape {tuple(rows.shape)} for a batch of {shape[0]} × {shape[1]}"
            f" tokens; expected {shape}. Its files are damaged, or it splits texts in another way"
        )
    # `numpy` would copy: of 4,096 rows of six layers side by side 38 MB.
    return np.asarray(memoryview(rows))


def token_outputs(result: Any) -> dict[str, Any]:
    """The per-token tensors of what a module returned, by the names that `--layer` knows.

    The Hub's encoders give a dict with ``sequence_output`` and a list ``encoder_outputs``,
    whose layers are called by their number from 1 on; old ones a list, in which the one
    tensor of three dimensions is the sequence.
    """
    if isinstance(result, list | tuple):
        sequences = [tensor for tensor in result if rank_of(tensor) == 3]
        result = {"sequence_output": sequences[-1]} if sequences else {}
    found: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, list | tuple):
            if name == "encoder_outputs":
                found |= {str(number): layer for number, layer in enumerate(value, start=1)}
        elif rank_of(value) == 3:
            found[name] = value
    return found


def piece_outputs(model: Any, signature: str) -> Callable[[Any, Any, Any], Outputs]:
    """A module that takes ids of pieces as a function of ids, mask and type ids."""

    def call(ids: Any, mask: Any, types: Any) -> Outputs:
        named = {IDS: ids, MASK: mask, TYPES: types}
        if signature == CALL_DICT:
            return token_outputs(model(named))
        if signature == CALL_LIST:
            return token_outputs(model([ids, mask, types]))
        function = model.signatures[signature]
        return token_outputs(function(**renamed(inputs_of(function), named)))

    return call


CALL_DICT = "__call__"
CALL_LIST = "__call__ of a list"
_TF1_NAMES = {"input_ids": IDS, "segment_ids": TYPES, MASK: MASK}


def takes_pieces(inputs: Mapping[str, Any]) -> bool:
    """Whether inputs are those of BERT, by the names of the Hub or of TF1's modules."""
    return set(inputs) in ({IDS, MASK, TYPES}, set(_TF1_NAMES))


def renamed(inputs: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under the names that a signature has for them."""
    return {name: named[_TF1_NAMES.get(name, name)] for name in inputs}
