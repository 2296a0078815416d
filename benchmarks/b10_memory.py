"""B10: peak memory against the size of the corpus."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path

from benchmarks.child import run_child
from benchmarks.corpora import write_texts
from benchmarks.measure import SLOW_ROUNDS, SLOW_SECONDS, Series, WrongAnswerError
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale

FLAT = 1.1
"""What counts as flat: so much more memory at most, from one size of corpus to the next."""


KINDS = ("misses", "hits")
FIGURES = ("resident", "anonymous")


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    series: list[Series] = []
    for num_texts in scale.memory_texts:
        corpus = write_texts(work / f"{num_texts}.txt", num_texts, mean_words=21)
        for kind in KINDS:
            series += _measure_builds(kind, corpus, work / "store", num_texts, scale.rounds)
        shutil.rmtree(work / "store")
    return Report(
        number="B10",
        title="peak memory of a build against the size of its corpus",
        unit="MB",
        cache="warm",
        binds="for misses TensorFlow itself, then two shards, one filled and one being written:"
        " keys, codes and spans of up to 2¹⁸ texts each; for hits the pass that counts distinct"
        " texts, which sorts keys in memory, and what is mapped and can be dropped: the index (24"
        " bytes a text) and the dataset's keys (16)",
        series=series,
        targets=_targets(series, scale.memory_texts),
        notes=[
            "Each build is a process of its own. Resident: `VmHWM`, that is `ru_maxrss` without"
            " what is inherited from the parent process. Anonymous: the most of `RssAnon`, seen"
            " every 20 ms: what no file backs. Generated texts of SST-2's length mix.",
        ],
    )


def _measure_builds(
    kind: str, corpus: Path, store: Path, num_texts: int, rounds: int
) -> list[Series]:
    """Builds of misses into a new store each, or of hits in the store that is there."""
    resident, anonymous = every = [
        Series(_name(kind, figure, num_texts), "ours") for figure in FIGURES
    ]
    seconds = 0.0
    while len(resident.values) < (rounds if seconds <= SLOW_SECONDS else min(rounds, SLOW_ROUNDS)):
        if kind == "misses":
            shutil.rmtree(store, ignore_errors=True)
        started = time.perf_counter()
        record = run_child("build", store, corpus)
        seconds = time.perf_counter() - started
        expected = record["unique"] if kind == "misses" else 0
        if record["texts"] != num_texts or record["misses"] != expected:
            raise WrongAnswerError(f"not a build of {kind}: {record}")
        if kind == "hits" and record["tensorflow_loaded"]:
            raise WrongAnswerError("a build of hits has loaded TensorFlow")
        resident.values.append(record["peak_rss_bytes"] / 1e6)
        anonymous.values.append(record["peak_anonymous_bytes"] / 1e6)
    return every


def _name(kind: str, figure: str, num_texts: int) -> str:
    return f"{kind}, {num_texts:,} texts, {figure}"


def _targets(series: list[Series], sizes: tuple[int, ...]) -> list[Target]:
    targets = []
    for kind in KINDS:
        for figure in FIGURES:
            for small, large in itertools.pairwise(sizes):
                before = named(series, _name(kind, figure, small)).median
                after = named(series, _name(kind, figure, large)).median
                what = f"{kind}, {figure}: {large:,} texts take ≤ {FLAT:g} × what {small:,} take"
                targets.append(Target(what=what, value=after / before, wanted=FLAT, at_most=True))
    return targets
