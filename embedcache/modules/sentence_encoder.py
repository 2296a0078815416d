"""Sentence encoders: string → vector, where the vector is of the text as a whole.

Universal Sentence Encoder and its kin give no rows for tokens. A matrix is made of the
vectors of the text's parts: of its sentences, of a window around each word, or of each
word alone. A part's vector depends on the part alone, so each distinct one is embedded
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import EncodingError, ModuleError
from embedcache.modules.facts import ModuleFacts
from embedcache.modules.saved_model import asset_of, inputs_of, mapped_errors, string_call
from embedcache.modules.splitting import (
    SENTENCES,
    WORDS,
    spans_of_ranges,
    split_texts,
    split_words,
    with_context,
)
from embedcache.ragged import splits_of_lengths

SENTENCE_PIECES = "sentencepiece"
"""`ModuleFacts.tokenizer` of universal-sentence-encoder-lite, which takes ids of pieces."""

_BYTES_PER_PIECE = 4
"""About what a word piece takes of English text."""

PATH_SIGNATURE = "spm_path"
StringCall = Callable[[Sequence[bytes]], NDArray[np.float32]]


class PartsEncoder:
    """A `TokenEncoder` whose tokens are the parts of a text.

    Args:
        handle: The module's, for messages.
        call: UTF-8 strings → vectors (n, dim) float32.
        dim: The width of the vectors.
        granularity: ``"sentence"``, ``"window"`` or ``"token"``.
        context_words: With ``"window"``: words on either side.
    """

    def __init__(
        self, handle: str, call: StringCall, dim: int, *, granularity: str, context_words: int
    ) -> None:
        self._handle = handle
        self._call = call
        self._dim = dim
        self._granularity = granularity
        self._context_words = context_words

    @property
    def dim(self) -> int:
        """The width of the matrices."""
        return self._dim

    @property
    def num_traces(self) -> int:
        """None: the module's own functions are called, which are traced already."""
        return 0

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their parts; a window's span is that of the word in its middle."""
        if self._granularity == "sentence":
            return split_texts(texts, SENTENCES)
        if self._granularity == "token":
            return split_texts(texts, WORDS)
        words = [split_words(text) for text in texts]
        windows = [
            window
            for text, ranges in zip(texts, words, strict=True)
            for window in with_context(text, ranges, self._context_words)
        ]
        splits = splits_of_lengths([len(ranges) for ranges in words])
        return TokenizedTexts(windows, splits, spans_of_ranges(words))

    def token_lengths(self, tokens: Sequence[bytes]) -> NDArray[np.int64]:
        """About how many pieces the module cuts each part into, (n,)."""
        sizes = np.fromiter(map(len, tokens), np.int64, len(tokens))
        return 1 + sizes // _BYTES_PER_PIECE

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        """Parts → their vectors, (n, dim) float32, in their order."""
        with mapped_errors(self._handle, "failed on a batch of strings"):
            vectors = self._call(tokens)
        if vectors.shape != (len(tokens), self.dim):
            raise EncodingError(
                f"{self._handle}: returned shape {vectors.shape} for {len(tokens)} texts; expected"
                f" {(len(tokens), self.dim)}. It is not a text module, or its files are damaged"
            )
        return vectors

    def text_difference(
        self,
        text: bytes,  # noqa: ARG002 - the seam's
        rows: NDArray[np.float32],  # noqa: ARG002
    ) -> float | None:
        """None: the module does not combine rows."""
        return None


def sentence_call(handle: str, model: Any, path: Path, facts: ModuleFacts) -> StringCall:
    """A sentence encoder as a function of UTF-8 strings.

    Args:
        handle: The module's, for messages.
        model: Loaded.
        path: Its folder.
        facts: What its probe found.

    Raises:
        ModuleError: if it needs ``sentencepiece`` and that is not installed.
    """
    if facts.tokenizer == SENTENCE_PIECES:
        return _piece_call(handle, model, path, facts)
    return string_call(model, facts.signature, facts.output)


def _piece_call(handle: str, model: Any, path: Path, facts: ModuleFacts) -> StringCall:
    """A module that takes ids of sentence pieces as the parts of a sparse tensor."""
    import tensorflow as tf

    try:
        import sentencepiece
    except ImportError as error:
        raise ModuleError(
            f"{handle}: takes sentence pieces, which the package sentencepiece makes of a text;"
            " install it: pip install 'embedcache[sentencepiece]'"
        ) from error
    (output,) = model.signatures[PATH_SIGNATURE].structured_outputs
    splitter = sentencepiece.SentencePieceProcessor()
    splitter.Load(str(asset_of(handle, path, model, PATH_SIGNATURE, output)))
    function = model.signatures[facts.signature]
    dtypes = {name: spec.dtype for name, spec in inputs_of(function).items()}

    def call(texts: Sequence[bytes]) -> NDArray[np.float32]:
        pieces = [splitter.EncodeAsIds(text.decode(errors="replace")) for text in texts]
        splits = splits_of_lengths([len(ids) for ids in pieces])
        lengths = np.diff(splits)
        rows = np.repeat(np.arange(len(texts)), lengths)
        columns = np.arange(splits[-1]) - np.repeat(splits[:-1], lengths)
        parts = {
            "indices": np.stack([rows, columns], axis=1),
            "values": np.array([piece for ids in pieces for piece in ids]),
            "dense_shape": np.array([len(texts), max(1, int(lengths.max(initial=0)))]),
        }
        tensors = {name: tf.constant(parts[name], dtype) for name, dtype in dtypes.items()}
        return np.asarray(function(**tensors)[facts.output].numpy(), np.float32)

    return call


def takes_pieces(function: Any) -> bool:
    """Whether a signature takes the three parts of a sparse tensor of ids."""
    return set(inputs_of(function)) == {"indices", "values", "dense_shape"}
