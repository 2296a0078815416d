"""What is to be computed, and what has been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.fidelity import Fidelity
from embedcache.keys import Keys
from embedcache.store.shards.codec import ReconstructionError
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED


@dataclass(frozen=True, slots=True)
class MissingTexts:
    """Texts to compute.

    Attributes:
        keys: Distinct keys, (n, 16).
        texts: Their UTF-8.
        places: Where each stands, for messages: ``corpus.txt:7``.
    """

    keys: Keys
    texts: Sequence[bytes]
    places: Callable[[int], str]


@dataclass(slots=True)
class ComputeCounts:
    """What a computer has done so far.

    Attributes:
        texts: Texts handed to the writer.
        tokens: Rows of them.
        truncated: Those that were cut.
        windowed: Those that were stitched from windows.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    windowed: int = 0

    def add(self, flags: NDArray[np.uint8], num_tokens: int) -> None:
        """Count texts, given the flags of each, (n,), and the rows of all."""
        self.texts += len(flags)
        self.tokens += num_tokens
        self.truncated += int(np.count_nonzero(flags & FLAG_TRUNCATED))
        self.windowed += int(np.count_nonzero(flags & FLAG_WINDOWED))


class Computer(Protocol):
    """Computes features of one view and hands them to a writer."""

    counts: ComputeCounts
    fidelity: Fidelity
    reconstruction: ReconstructionError
    """What storing has cost in precision, over a sample of the rows."""
    buffer_texts: int
    """How many texts `compute` is best given at once."""
    buffer_bytes: int
    """How many bytes of them."""

    def compute(self, missing: MissingTexts) -> None:
        """Compute some texts and add them to the open shard; closes it when it is due.

        Raises:
            EncodingError: if a text is too long and the view says ``overflow="error"``, or
                the module returned what cannot be stored; names the text's place.
            FidelityError: if a sample, computed alone, differs.
            ModuleError: if the module fails.
            StoreError: if a shard cannot be written.
        """
        ...
