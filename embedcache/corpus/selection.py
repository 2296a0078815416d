"""Some documents of a corpus: what is tried before the whole is paid for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.corpus.documents import DocumentBatch

DocumentSelection = NDArray[np.int64]
"""Places of documents in a corpus, (n,), counted from 0 over all of its files."""

_Item = TypeVar("_Item")


def choose_documents(
    batches: Iterable[DocumentBatch], selection: DocumentSelection
) -> Iterator[DocumentBatch]:
    """The batches of a corpus with only some of their documents; empty ones are left out.

    Every batch is read, so that a bad line is an error wherever it stands.

    Args:
        batches: All of the corpus, in order.
        selection: The documents, strictly ascending; places after the last one choose nothing.

    Raises:
        ValueError: if the places are not strictly ascending from 0 on.
    """
    if len(selection) and (selection[0] < 0 or (np.diff(selection) <= 0).any()):
        raise ValueError("the places of documents must be strictly ascending, from 0 on")
    first = 0
    for batch in batches:
        end = first + len(batch.texts)
        low, high = np.searchsorted(selection, (first, end))
        places = (selection[low:high] - first).tolist()
        first = end
        if places:
            yield DocumentBatch(
                batch.source,
                _take(batch.texts, places),
                None if batch.labels is None else _take(batch.labels, places),
                None if batch.splits is None else _take(batch.splits, places),
                None if batch.ids is None else _take(batch.ids, places),
                _take(batch.lines, places),
            )


def _take(items: Sequence[_Item], places: Sequence[int]) -> list[_Item]:
    return [items[place] for place in places]
