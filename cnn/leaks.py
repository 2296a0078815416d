"""Texts that stand in two parts of a training: scores on them say nothing.

Equal texts are found by their keys; nearly equal ones, on request, by the cosine of their
mean-pooled vectors (see `cnn.near`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.config import ResolvedConfig
from cnn.labelled import Parts, Rows
from embedcache.errors import TrainingError
from embedcache.keys import Keys
from embedcache.store.dataset import Dataset

EXACT = "exact"
NEAR = "near"
_MAX_EXAMPLES = 5

_log = logging.getLogger("cnn.leaks")

Pairs = NDArray[np.int64]
"""Documents that are alike, (m, 2): a position in the dataset in the earlier part, and one in
the later part. Of an earlier document the first later one, and of a later one the first
earlier one, are enough: not all pairs are listed."""

FindPairs = Callable[[Rows, Rows], Pairs]


@dataclass(frozen=True, slots=True)
class Leak:
    """Texts of one part that another part has too; with folds those of all folds together.

    Attributes:
        kind: ``"exact"``, the same text; ``"near"``, pooled vectors with a cosine of at
            least ``near_duplicates``, the same texts left out.
        parts: The two parts: ``train``, ``dev``, ``test``, in this order.
        documents: How many documents of each of the two have their like in the other.
        examples: Numbers in the corpus, from 1 on, of at most five such pairs.
        dropped: Whether those of the first part were left out of it.
    """

    kind: str
    parts: tuple[str, str]
    documents: tuple[int, int]
    examples: tuple[tuple[int, int], ...]
    dropped: bool

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {
            "parts": list(self.parts),
            "documents": list(self.documents),
            "examples": [list(pair) for pair in self.examples],
        }


def guard_parts(
    dataset: Dataset, cuts: Sequence[Parts], config: ResolvedConfig, *, kind: str, find: FindPairs
) -> tuple[list[Parts], list[Leak]]:
    """Look for texts of one part in another, and do as ``config.on_leak`` says.

    Dropped are documents of train that dev or test has too, and of dev that test has.

    Args:
        dataset: The documents.
        cuts: The parts: one, or one a fold.
        config: What to do.
        kind: ``"exact"`` or ``"near"``, for the reports.
        find: Finds the pairs between two parts.

    Returns:
        The parts to train on, and what was found.

    Raises:
        TrainingError: if something was found and ``config.on_leak`` is ``"error"``, or if
            dropping leaves a part empty.
    """
    drop = config.on_leak == "drop"
    found: dict[tuple[str, str], list[Pairs]] = {}
    kept = []
    for parts in cuts:
        between = dict(_pairs_of(parts, find))
        for names, pairs in between.items():
            found.setdefault(names, []).append(pairs)
        kept.append(_without(dataset, parts, between) if drop else parts)
    leaks = [
        leak
        for names, pairs in found.items()
        if (leak := _leak_of(kind, names, pairs, dropped=drop)) is not None
    ]
    if leaks and config.on_leak == "error":
        raise TrainingError(
            f"{_sentence(dataset, leaks[0], config)}; take them out of the corpus, or train with"
            " --on-leak drop, which leaves them out of the training texts, or --on-leak warn"
        )
    for leak in leaks:
        _log.warning("%s", _sentence(dataset, leak, config))
    return kept, leaks


def find_equal(keys: Keys, first: Rows, second: Rows) -> Pairs:
    """The documents of two parts that have the same text, by their keys (n, 16)."""
    chosen = np.ascontiguousarray(keys[np.concatenate([first, second])])
    texts = np.unique(chosen, axis=0, return_inverse=True)[1].reshape(-1)
    ours, theirs = texts[: len(first)], texts[len(first) :]
    common, at_ours, at_theirs = np.intersect1d(ours, theirs, return_indices=True)
    in_ours, in_theirs = (np.flatnonzero(np.isin(part, common)) for part in (ours, theirs))
    of_ours = at_theirs[np.searchsorted(common, ours[in_ours])]
    of_theirs = at_ours[np.searchsorted(common, theirs[in_theirs])]
    pairs = [
        np.stack([first[in_ours], second[of_ours]], axis=1),
        np.stack([first[of_theirs], second[in_theirs]], axis=1),
    ]
    return np.unique(np.concatenate(pairs), axis=0)


def _pairs_of(parts: Parts, find: FindPairs) -> Iterator[tuple[tuple[str, str], Pairs]]:
    for (one, ours), (other, theirs) in itertools.combinations(parts.by_name().items(), 2):
        yield (one, other), find(ours, theirs)


def _without(dataset: Dataset, parts: Parts, found: dict[tuple[str, str], Pairs]) -> Parts:
    """The parts without what a later one has too."""
    left = {}
    for name, rows in parts.by_name().items():
        doomed = [pairs[:, 0] for (one, _), pairs in found.items() if one == name]
        left[name] = rows[~np.isin(rows, np.concatenate([np.zeros(0, np.int64), *doomed]))]
        if len(left[name]) == 0 and len(rows):
            raise TrainingError(
                f"dataset {dataset.name!r}: every document of {name} has its like in a later part,"
                " so that --on-leak drop would leave none; give other splits"
            )
    return Parts(left["train"], left["dev"], left.get("test"))


def _leak_of(
    kind: str, names: tuple[str, str], found: Iterable[Pairs], *, dropped: bool
) -> Leak | None:
    several = list(found)
    counts = [[len(np.unique(pairs[:, side])) for side in (0, 1)] for pairs in several]
    documents = (sum(count[0] for count in counts), sum(count[1] for count in counts))
    if not sum(documents):
        return None
    first = np.unique(np.concatenate(several), axis=0)[:_MAX_EXAMPLES] + 1
    examples = tuple((one, other) for one, other in first.tolist())
    return Leak(kind, names, documents, examples, dropped)


def _sentence(dataset: Dataset, leak: Leak, config: ResolvedConfig) -> str:
    (one, other), (count, other_count) = leak.parts, leak.documents
    if leak.kind == EXACT:
        what = f"have a text that {one} has too"
    else:
        what = f"have a pooled vector with a cosine of {config.near_duplicates:g} or more to {one}"
    folds = "" if config.folds is None else f" ({config.folds} folds together)"
    pairs = ", ".join(f"{first} and {second}" for first, second in leak.examples[:3])
    done = f"; {count} of {one} are left out" if leak.dropped else ""
    return (
        f"{other_count} documents of {other} of dataset {dataset.name!r} {what}{folds}: document"
        f" {pairs}{'' if len(leak.examples) <= 3 else ' and others'}{done}"
    )
