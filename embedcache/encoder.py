"""The seam between a module and the rest: texts in, one matrix per text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import RaggedArray


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The tokens of n texts, one after the other.

    Attributes:
        tokens: All tokens as UTF-8, T of them.
        row_splits: Shape (n + 1,), int64: text i has ``tokens[row_splits[i]:row_splits[i + 1]]``.
    """

    tokens: list[bytes]
    row_splits: NDArray[np.int64]


class Encoder(Protocol):
    """Turns texts into per-token matrices.

    The result depends on the text alone: not on the batch it is in, nor on the order.
    Not thread-safe: one thread calls an encoder. The arrays returned belong to the caller.
    """

    @property
    def dim(self) -> int:
        """The width of the matrices."""
        ...

    def encode_texts(self, texts: Sequence[bytes]) -> RaggedArray:
        """UTF-8 texts → one float32 matrix (num_tokens, dim) each, in their order.

        Raises:
            ModuleError: if the module fails.
            EncodingError: if it returns a wrong shape or dtype, NaN or infinity.
        """
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder whose row for a token depends on the token alone.

    So each distinct token need be embedded only once, and a shard can hold each
    distinct row once (dictionary encoding).
    """

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their tokens, as the module itself splits them."""
        ...

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        """Tokens → their rows, shape (n, dim), in their order."""
        ...
