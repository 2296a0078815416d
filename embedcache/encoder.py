"""The seam between a module and the rest: texts in, one matrix per text out.

There are two kinds of encoder. Where a row depends on its token alone (`TokenEncoder`),
each distinct token is embedded once. Where it depends on the whole text
(`SequenceEncoder`), texts of like length share a batch. Both split texts by
`tokenize_texts`; what follows is the compute stage's (`embedcache.compute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The tokens of n texts, one after the other.

    Attributes:
        tokens: All tokens, T of them: UTF-8 for a `TokenEncoder`; for a `SequenceEncoder`
            an array (T,) of whatever its `encode_batch` takes.
        row_splits: Shape (n + 1,), int64: text i has ``tokens[row_splits[i]:row_splits[i + 1]]``.
        spans: Where each token stands in its text, (T, 2) uint32: the half-open range of its
            UTF-8 bytes; start and end are equal for a token that could not be found there.
            None where the module does not tell.
        token_ids: The vocabulary id of each token, (T,) uint32; None where it has none.
        cut: Texts whose end the tokenizer itself has dropped, (n,) bool; None: it drops none.
    """

    tokens: Any
    row_splits: NDArray[np.int64]
    spans: NDArray[np.uint32] | None = None
    token_ids: NDArray[np.uint32] | None = None
    cut: NDArray[np.bool_] | None = None


class Encoder(Protocol):
    """What both kinds have. One thread calls an encoder; the arrays are the caller's.

    The result depends on the text alone: not on the batch it is in, nor on the order.
    """

    @property
    def dim(self) -> int:
        """The width of the matrices."""
        ...

    @property
    def num_traces(self) -> int:
        """How often TensorFlow has traced the encoder's own functions; it stays at one each."""
        ...

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their tokens, as the module itself splits them.

        Raises:
            ModuleError: if the module fails.
        """
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder whose row for a token depends on the token alone.

    So each distinct token need be embedded only once, and a shard can hold each
    distinct row once (dictionary encoding).
    """

    def token_lengths(self, tokens: Sequence[bytes]) -> NDArray[np.int64]:
        """How long each token is to the module, (n,): a batch costs its longest, n times."""
        ...

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        """Tokens → their rows, shape (n, dim), in their order.

        Raises:
            ModuleMemoryError: if they are too many for the memory.
            ModuleError: if the module fails.
            EncodingError: if it returns another shape than a row a token.
        """
        ...

    def text_difference(self, text: bytes, rows: NDArray[np.float32]) -> float | None:
        """How far a text's rows, combined, are from the module's own vector of the text.

        Args:
            text: UTF-8.
            rows: What `embed_tokens` gives for all its tokens, (num_tokens, dim).

        Returns:
            The largest difference as a share of the vector's largest number; None where the
            module does not combine rows.
        """
        ...


@runtime_checkable
class SequenceEncoder(Encoder, Protocol):
    """An encoder whose rows depend on the whole text."""

    @property
    def num_special(self) -> tuple[int, int]:
        """How many special tokens `encode_batch` puts before and after each sequence."""
        ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Their vocabulary ids: those before, then those after."""
        ...

    @property
    def max_length(self) -> int | None:
        """Tokens that a sequence may have, special ones included; None: no limit is known."""
        ...

    @property
    def fixed_length(self) -> int | None:
        """The one length that the module pads every sequence to; None: to the batch's."""
        ...

    def encode_batch(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """A batch of sequences → a row for each token.

        Args:
            tokens: Shape (B, L), of the dtype that `tokenize_texts` gives; what lies at or
                after a sequence's length does not matter.
            lengths: Tokens of each sequence, (B,); none above L.

        Returns:
            Shape (B, M, dim) with M at least L and the special tokens: those before come
            first; row ``before + length`` is the first one after. The rest means nothing.

        Raises:
            ModuleMemoryError: if the batch is too large for the memory.
            ModuleError: if the module fails.
            EncodingError: if it returns a wrong shape.
        """
        ...
