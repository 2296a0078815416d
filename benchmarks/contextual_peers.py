"""A contextual module called in other ways than embedcache's: B3's peers and its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import import_tensorflow
from benchmarks.measure import WrongAnswerError
from embedcache.encoder import SequenceEncoder
from embedcache.modules.saved_model import load_saved_model

BATCH_TEXTS = 32
"""As in TF Hub's tutorial on classifying texts with BERT."""
TOLERANCE = 1e-3
"""Contenders may differ by so much: their sums are added in another order."""
IDS, MASK, TYPES = "input_word_ids", "input_mask", "input_type_ids"

Pieces = NDArray[np.int32]
"""Ids of the pieces of a text, (length,)."""
Batch = dict[str, Any]
"""What the module takes: ids, mask and type ids, (B, L) int32 tensors."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The texts of B3.

    Attributes:
        texts: UTF-8; no two have the same pieces.
        pieces: The ids of the pieces of each, special ones left out, (length,) int32.
        slice_texts: How many of them a round of a slow contender takes.
    """

    texts: list[bytes]
    pieces: list[Pieces]
    slice_texts: int

    @property
    def num_tokens(self) -> int:
        """Pieces of all texts."""
        return sum(map(len, self.pieces))

    def beginning(self) -> Sample:
        """The first `BATCH_TEXTS` texts: enough to have every function traced and loaded."""
        return Sample(self.texts[:BATCH_TEXTS], self.pieces[:BATCH_TEXTS], BATCH_TEXTS)

    def part(self, number: int) -> slice:
        """The texts of a round: after the last part the first one comes again."""
        start = number % max(1, len(self.texts) // self.slice_texts) * self.slice_texts
        return slice(start, start + self.slice_texts)


class Reference:
    """The rows of every text, which what each contender puts out is compared with.

    Args:
        sequences: Ids of pieces with their rows, (length, dim), special ones left out.

    Attributes:
        differences: The largest one of each contender that was compared.
    """

    def __init__(self, sequences: Iterator[tuple[Pieces, NDArray[Any]]]) -> None:
        self._rows = {pieces.tobytes(): rows for pieces, rows in sequences}
        self.differences: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def compare(
        self, name: str, pieces: Pieces, rows: NDArray[Any], *, rounding: float = 0.0
    ) -> None:
        """Check a text's rows.

        Args:
            name: Whose they are.
            pieces: The text's ids.
            rows: Shape (length, dim).
            rounding: What storing adds, as a share of each number.

        Raises:
            WrongAnswerError: if they are others, or no text has these pieces.
        """
        expected = self._rows.get(pieces.astype(np.int32).tobytes())
        if expected is None or expected.shape != rows.shape:
            raise WrongAnswerError(f"{name!r} has split a text into other pieces")
        differences = np.abs(rows.astype(np.float32) - expected)
        largest = max(self.differences.get(name, 0.0), float(differences.max(initial=0.0)))
        self.differences[name] = largest
        # Not "any above": a NaN must not pass.
        if not (differences <= TOLERANCE + rounding * np.abs(expected)).all():
            raise WrongAnswerError(f"{name!r} differs by {differences.max():.3g} in a text's rows")


class HubModule:
    """An encoder and its preprocessor, called as their pages on TF Hub say.

    Args:
        encoder: Its folder.
        preprocess: The preprocessor's.
    """

    def __init__(self, encoder: Path, preprocess: Path) -> None:
        self._encoder = load_saved_model(str(encoder), encoder)
        self._preprocess = load_saved_model(str(preprocess), preprocess)

    def pack_fixed(self, texts: Any) -> Batch:
        """Texts (B,) → a batch of the preprocessor's own length, 128."""
        packed: Batch = self._preprocess(texts)
        return packed

    def pack_to_longest(self, texts: Any) -> Batch:
        """Texts (B,) → a batch as long as its longest text."""
        tf = import_tensorflow()
        pieces = self._preprocess.tokenize(texts)
        longest = tf.reduce_max(pieces.merge_dims(1, 2).row_lengths())
        length = tf.cast(longest, tf.int32) + 2
        packed: Batch = self._preprocess.bert_pack_inputs([pieces], length)
        return packed

    def encode(self, batch: Batch) -> Any:
        """A batch → the rows of its last layer, (B, L, dim)."""
        return self._encoder(batch)["sequence_output"]

    def encode_layer(self, batch: Batch, layer: int) -> Any:
        """A batch → the rows of a layer, counted from 1; the others are computed too."""
        return self._encoder(batch)["encoder_outputs"][layer - 1]

    def bare_function(self) -> Any:
        """`encode` as one traced function of ids, mask and type ids: nothing else is left of it."""
        tf = import_tensorflow()
        spec = tf.TensorSpec([None, None], tf.int32)
        return tf.function(
            lambda ids, mask, types: self.encode({IDS: ids, MASK: mask, TYPES: types}),
            input_signature=[spec] * 3,
        )


class CorpusOrder:
    """The usual way: texts as they come, `BATCH_TEXTS` at a time, padded; nothing is stored.

    Args:
        name: As a contender.
        encode: Batch → rows.
        pack: Texts → batch.
        sample: Each round takes a part of it.
    """

    def __init__(
        self,
        name: str,
        encode: Callable[[Batch], Any],
        pack: Callable[[Any], Batch],
        sample: Sample,
    ) -> None:
        self.name = name
        self._encode = encode
        self._pack = pack
        self._sample = sample
        self._outputs: list[tuple[Batch, Any]] = []

    def run(self, number: int) -> float:
        """Put a part of the sample through the module; its real tokens."""
        tf = import_tensorflow()
        part = self._sample.part(number)
        texts = self._sample.texts[part]
        self._outputs = []
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = self._pack(tf.constant(texts[start : start + BATCH_TEXTS], tf.string))
            self._outputs.append((batch, self._encode(batch)))
        return sum(map(len, self._sample.pieces[part]))

    def check(self, number: int, reference: Reference) -> None:
        """Compare what the run gave."""
        num_texts = 0
        for pieces, rows in self.take_rows():
            reference.compare(self.name, pieces, rows)
            num_texts += 1
        if num_texts != len(self._sample.texts[self._sample.part(number)]):
            raise WrongAnswerError(f"{self.name!r} has embedded {num_texts} texts")

    def take_rows(self) -> Iterator[tuple[Pieces, NDArray[Any]]]:
        """Of each text of the last run its pieces and their rows."""
        outputs, self._outputs = self._outputs, []
        for batch, rows in outputs:
            yield from real_rows(batch, rows)


def real_rows(batch: Batch, rows: Any) -> Iterator[tuple[Pieces, NDArray[Any]]]:
    """Of each text of a batch its pieces and their rows, without special ones and padding."""
    lengths = batch[MASK].numpy().sum(axis=1) - 2
    for ids, matrix, length in zip(batch[IDS].numpy(), rows.numpy(), lengths, strict=True):
        # Copied: what is kept of a few texts must not keep the whole batch.
        yield ids[1 : 1 + length].copy(), matrix[1 : 1 + length].copy()


class BatchRecorder:
    """Keeps the batches that go through an encoder; a context manager.

    Args:
        encoder: Its method is wrapped meanwhile.

    Attributes:
        batches: Every batch of sequences that were not seen before: what goes through once
            more, to be checked, is left out.
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        self._encoder = encoder
        self._seen: set[bytes] = set()
        self.batches: list[Batch] = []

    def __enter__(self) -> BatchRecorder:
        self._encode_batch = self._encoder.encode_batch
        vars(self._encoder)["encode_batch"] = self._record
        return self

    def __exit__(self, *_: object) -> None:
        del vars(self._encoder)["encode_batch"]

    def _record(self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        sequences = {row[:length].tobytes() for row, length in zip(tokens, lengths, strict=True)}
        if not sequences <= self._seen:
            self._seen |= sequences
            self.batches.append(self._packed(tokens, lengths))
        return self._encode_batch(tokens, lengths)

    def _packed(self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]) -> Batch:
        """With ``[CLS]`` and ``[SEP]`` around each sequence, and 0 after it."""
        tf = import_tensorflow()
        start, end = self._encoder.special_ids
        ids = np.zeros((len(tokens), tokens.shape[1] + 2), np.int32)
        ids[:, 0] = start
        for row, sequence, length in zip(ids, tokens, lengths, strict=True):
            row[1 : 1 + length] = sequence[:length]
            row[1 + length] = end
        mask = np.arange(ids.shape[1]) < lengths[:, np.newaxis] + 2
        packed = {IDS: ids, MASK: mask.astype(np.int32), TYPES: np.zeros_like(ids)}
        return {name: tf.constant(array) for name, array in packed.items()}


class BareModule:
    """The limit: batches that are tokenised and padded already, through the module's function.

    Args:
        module: The module.
        batches: Those that embedcache makes of the sample.
    """

    def __init__(self, module: HubModule, batches: Sequence[Batch]) -> None:
        self._function = module.bare_function()
        self._batches = batches
        self._num_tokens = sum(int(batch[MASK].numpy()[:, 2:].sum()) for batch in batches)

    def run(self, _number: int) -> float:
        """Put the batches through the module; their real tokens."""
        for batch in self._batches:
            self._function(batch[IDS], batch[MASK], batch[TYPES])
        return self._num_tokens

    def rows(self) -> Iterator[tuple[Pieces, NDArray[Any]]]:
        """Of each text its pieces and their rows."""
        for batch in self._batches:
            rows = self._function(batch[IDS], batch[MASK], batch[TYPES])
            yield from real_rows(batch, rows)
