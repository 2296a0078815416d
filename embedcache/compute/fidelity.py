"""Is what is stored what the module gives? A sample of each build is computed once more.

A module may let padding into its rows, keep a state, drop out at random, or not be a bag of
words on texts unlike the probe's. Then a text's features would depend on the batch it was
in, and a cache would hold numbers that nobody can get again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import FidelityError
from embedcache.store.shards.codec import from_storage

_TOLERANCE = 1e-3
"""Of a text's largest number. The sums of a batch are added in another order than those of
one text: on SST-2, MiniLM's rows from batches padded in three ways agreed to 6e-6 (B3)."""
_ROUNDING = {"float16": 2.0**-11, "float32": 0.0, "bfloat16": 2.0**-8, "int8": 0.5 / 127}
"""What storing adds: half of the last bit; of int8, of the largest number of the row."""

FIRST_SAMPLE = 8
"""Texts of a build's first buffer that are computed again."""
TEXTS_A_SAMPLE = 1 << 14
"""After that one of so many: it costs nothing to speak of, and a fault shows early or never."""


@dataclass(frozen=True, slots=True)
class FidelityReport:
    """What the checks of a view have found.

    Attributes:
        texts: Texts that were computed again, alone and unpadded.
        max_difference: The largest difference between a stored number and the module's.
    """

    texts: int
    max_difference: float


class Fidelity:
    """Compares stored rows with live ones, and keeps the largest difference."""

    def __init__(self, handle: str, dtype: str) -> None:
        self._handle = handle
        self._dtype = dtype
        self._tolerance = _TOLERANCE + _ROUNDING[dtype]
        self._offered = 0
        self._texts = 0
        self._max_difference = 0.0

    @property
    def report(self) -> FidelityReport:
        """What was found so far."""
        return FidelityReport(self._texts, self._max_difference)

    def sample_size(self, num_texts: int) -> int:
        """How many texts to compute again of the next ones.

        Args:
            num_texts: How many these are.
        """
        before, self._offered = self._offered, self._offered + num_texts
        if before < FIRST_SAMPLE:
            # The first eight, whether they come at once or, to a service, one by one.
            return min(self._offered, FIRST_SAMPLE) - before
        return self._offered // TEXTS_A_SAMPLE - before // TEXTS_A_SAMPLE

    def compare(self, stored: NDArray[Any], live: NDArray[np.float32], place: str) -> None:
        """Check one text's rows: stored ones (num_tokens, row_width), live (num_tokens, dim).

        Raises:
            FidelityError: if they differ by more than storing and summing explain.
        """
        self._texts += 1
        rows = from_storage(stored, self._dtype).astype(np.float32, copy=False)
        difference = float(np.abs(rows - live).max(initial=0.0))
        self._max_difference = max(self._max_difference, difference)
        # Of the stored rows, which are finite: an infinity of the module must not pass, nor
        # a NaN, which "difference >" would let through.
        scale = max(1.0, float(np.abs(rows).max(initial=0.0)))
        if not difference <= self._tolerance * scale:
            raise FidelityError(
                f"{place}: in a batch {self._handle} gives other numbers than for the text alone"
                f" (they differ by {difference:.3g}, {self._tolerance * scale:.3g} is allowed):"
                " it lets padding in, keeps a state, or is random; use another module"
            )

    def compare_text(self, difference: float | None, place: str) -> None:
        """Check how far a bag of words is from its module's own vector, as a share of it.

        Raises:
            FidelityError: if rows do not combine to it.
        """
        if difference is not None and not difference <= _TOLERANCE:
            raise FidelityError(
                f"{place}: the rows of its tokens do not combine to {self._handle}'s own vector of"
                f" the text (they differ by {difference:.3g}): on this corpus it is no bag of"
                " words; use --granularity sentence or another module"
            )
