"""A stratified part of a corpus: small enough to try many modules on, and like the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.corpus import CorpusOptions, CorpusReader, Source
from embedcache.errors import CorpusError, TrainingError
from embedcache.keys import Keys, keys_of_utf8

_STDIN = "-"
_LEAST = 2
"""Documents of each label in each split, where there are so many: one to train on, and one that
can be set aside to choose the epoch by."""
_PART_STREAM = 0x70617274  # tells this draw from those of splits and folds


@dataclass(frozen=True, slots=True)
class CorpusPart:
    """Some documents of a corpus.

    Attributes:
        documents: Their places in the corpus, (n,) int64, ascending.
        keys: Key of every document of the whole corpus, (N, 16).
    """

    documents: NDArray[np.int64]
    keys: Keys


def choose_part(
    sources: Sequence[Source], options: CorpusOptions, *, size: int, seed: int
) -> CorpusPart:
    """Draw documents so that each label is as frequent in each split as in the whole.

    Of every label of every split there are at least two, or all it has; the rest is dealt out
    in proportion, by the largest remainders.

    Args:
        sources: The corpus's files; they are read once.
        options: How.
        size: How many documents; a corpus of fewer is taken whole.
        seed: What the draw depends on.

    Raises:
        CorpusError: if the corpus cannot be read, or is standard input.
        TrainingError: if it has no labels, or ``size`` is too small for those it has.
    """
    if any(source.path == _STDIN for source in sources):
        raise CorpusError(
            "standard input can be read only once, and a bake-off reads the corpus for each"
            " module; put it into a file"
        )
    strata: dict[tuple[str, tuple[str, ...]], int] = {}
    codes: list[int] = []
    keys: list[Keys] = []
    for batch in CorpusReader(sources, options):
        count = len(batch.texts)
        splits = batch.splits or [""] * count
        labels = batch.labels or [()] * count
        codes += [
            strata.setdefault(stratum, len(strata)) for stratum in zip(splits, labels, strict=True)
        ]
        keys.append(keys_of_utf8(batch.texts))
    if not any(labels for _, labels in strata):
        raise TrainingError(
            f"{sources[0].path}: the corpus has no labels, so modules cannot be compared on it;"
            " give it some (fastText lines, or a column with --label-field)"
        )
    documents = draw_stratified(np.array(codes), size, seed=seed)
    return CorpusPart(documents, np.concatenate(keys))


def draw_stratified(strata: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Draw so many places that each stratum has its share.

    Args:
        strata: Stratum of each of n documents, (n,), from 0 on.
        size: How many to draw; n at most are.
        seed: What the draw depends on.

    Returns:
        Places, (min(size, n),) int64, ascending.

    Raises:
        TrainingError: if ``size`` is less than two, or all, of each stratum.
    """
    counts = np.bincount(strata)
    if size >= len(strata):
        return np.arange(len(strata), dtype=np.int64)
    least = np.minimum(counts, _LEAST)
    if size < least.sum():
        raise TrainingError(
            f"a part of {size} documents is too small for {len(counts)} labels and splits, of each"
            f" of which it needs {_LEAST}; take at least {least.sum()} (--sample {least.sum()})"
        )
    quotas = least + _largest_remainders(counts - least, size - int(least.sum()))
    generator = np.random.default_rng((_PART_STREAM, seed))
    chosen = [
        generator.permutation(np.flatnonzero(strata == stratum))[:quota]
        for stratum, quota in enumerate(quotas.tolist())
    ]
    return np.sort(np.concatenate(chosen))


def _largest_remainders(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Whole numbers in proportion to the counts, together ``total``; none above its count."""
    exact = counts * (total / max(1, int(counts.sum())))
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = total - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares
