"""B9: what each storage dtype and layout takes, loses, and does to reading and to accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.accuracy import Accuracies, compare_seeds, train_seeds
from benchmarks.checkpoints import MINILM_PACKAGE, find_minilm, write_tiny_checkpoint
from benchmarks.corpora import sst2_files, sst2_sources, trec_files
from benchmarks.encoding_stores import (
    BATCH_SIZE,
    DATASET,
    DTYPES,
    Layout,
    StoredSubject,
    Subject,
    compressions,
    open_all,
)
from benchmarks.measure import Contender, Series, measure
from benchmarks.report import Report, Table, Target
from benchmarks.scale import Scale
from embedcache import FeatureStream
from embedcache.corpus import CorpusOptions, CorpusReader, sources_of
from embedcache.modules.convert.bert import convert_bert_checkpoint

LAYER = "4"
BASE = DTYPES[0]
FIRST_ROUNDS = 3


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    subjects, skipped = find_subjects(scale, work)
    stored = [
        StoredSubject(subject, work / f"stores-{number}") for number, subject in enumerate(subjects)
    ]
    num_differing = sum(each.count_differing() for each in stored)
    series, first = _measure_reading([each for each in stored if each.subject.is_read], scale)
    trained = [
        (each, _train(each, scale.encoding_epochs)) for each in stored if each.subject.num_seeds
    ]
    what = "rows that are other bits than those of the dense, uncompressed shard"
    return Report(
        number="B9",
        title="storage dtypes, dictionary and compression: size, error, reading, accuracy",
        unit="texts/s",
        cache="warm, all files are in the page cache",
        binds="reading: copying rows into the batch, and for bfloat16 and int8 making float32 of"
        " them; accuracy: the texts and the module, not how its numbers are stored",
        series=series,
        targets=[
            *_noise_targets(trained),
            Target(what=what, value=num_differing, wanted=0, at_most=True, unit="rows"),
        ],
        tables=[
            _sizes_table(stored),
            _errors_table(stored),
            _first_table(first),
            _accuracy_table(trained),
        ],
        notes=[*_subject_notes(stored), *_NOTES, *_training_notes(trained, scale)],
        skipped=skipped,
    )


def find_subjects(scale: Scale, work: Path) -> tuple[list[Subject], list[str]]:
    """What can be measured here, and what cannot."""
    subjects, skipped = _find_words(scale, work)
    if len(compressions()) == 1:
        skipped.append("zstd: the package hdf5plugin is not installed")
    contextual = subjects[0]
    if not scale.use_real_data:
        checkpoint = write_tiny_checkpoint(work / "checkpoint", _texts(contextual))
    elif (found := find_minilm()) is not None:
        checkpoint = found
    else:
        skipped.append(f"MiniLM: {MINILM_PACKAGE}, which holds its weights, is not installed")
        return subjects, skipped
    converted = convert_bert_checkpoint(checkpoint, work / "module", max_seq_length=128)
    kind = "MiniLM" if scale.use_real_data else "a BERT with random weights"
    subjects.append(
        Subject(
            corpus=contextual.corpus,
            kind=kind,
            what=f"layer {LAYER} of {kind}, {converted.dim} dimensions",
            sources=contextual.sources,
            module=str(converted.encoder),
            layer=LAYER,
            encodings=("dense",),
            # The labels of generated texts mean nothing: they are for the tests.
            num_seeds=scale.encoding_seeds[0]
            if contextual.num_seeds or not scale.use_real_data
            else 0,
        )
    )
    return subjects, skipped


def _find_words(scale: Scale, work: Path) -> tuple[list[Subject], list[str]]:
    """Corpora for the built-in module, those of Kim where they are there."""
    subjects, skipped = [], []
    if scale.use_real_data:
        real = (("TREC", trec_files()), ("SST-2", sst2_files()))
        for (name, files), num_seeds in zip(real, scale.encoding_seeds, strict=True):
            if files:
                subjects.append(_words(name, files, num_seeds))
            else:
                skipped.append(f"{name}: it is not beside the checkout, in ../shared/data")
    if not subjects:
        files, _ = sst2_sources(scale, work, scale.encoding_texts)
        subjects.append(_words("generated", {"train": files["train"], "test": files["train"]}, 0))
    # Reading one of them is enough: it is the same work a token.
    subjects[-1] = replace(subjects[-1], is_read=True)
    return subjects, skipped


def _words(corpus: str, files: dict[str, Path], num_seeds: int) -> Subject:
    return Subject(
        corpus=corpus,
        kind="words",
        what="`builtin:en-words-128`, 128 dimensions",
        sources=files,
        num_seeds=num_seeds,
        is_read=False,
    )


def _texts(subject: Subject) -> list[bytes]:
    reader = CorpusReader(sources_of(subject.sources), CorpusOptions())
    return [text for batch in reader for text in batch.texts]


def _measure_reading(
    subjects: Sequence[StoredSubject], scale: Scale
) -> tuple[list[Series], list[Series]]:
    """Texts a second of an epoch: of a stream that has been read before, and of a new one."""
    contenders, first = [], []
    with ExitStack() as stack:
        for stored, layout, store in open_all(stack, subjects):
            for dtype in DTYPES:
                name = f"{stored.subject.name}: {dtype}, {layout}"
                read = partial(_read_epoch, stored.stream(store, dtype))
                contenders.append(Contender(name=name, role="ours", run=read))
                read = partial(_read_first_epoch, stored, layout, dtype)
                first.append(Contender(name=name, role="ours", run=read))
        for contender in contenders:
            contender.run(0)
        series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    return series, measure(first, rounds=min(scale.rounds, FIRST_ROUNDS))


def _read_epoch(stream: FeatureStream, number: int) -> int:
    return sum(len(batch) for batch in stream.epoch(number))


def _read_first_epoch(stored: StoredSubject, layout: Layout, dtype: str, number: int) -> int:
    """What a new process pays: opening, checksums, unpacking."""
    with stored.open(layout) as store:
        return _read_epoch(stored.stream(store, dtype), number)


def _train(stored: StoredSubject, epochs: int) -> list[Accuracies]:
    """Test accuracies on float32, then on each dtype that has other numbers."""
    with stored.open(stored.layouts[0]) as store:
        return [
            train_seeds(
                store,
                DATASET,
                stored.view(dtype),
                name=dtype,
                num_seeds=stored.subject.num_seeds,
                epochs=epochs,
            )
            for dtype in DTYPES
            if dtype == BASE or not stored.is_exact(dtype)
        ]


Trained = Sequence[tuple[StoredSubject, Sequence[Accuracies]]]


def _noise_targets(trained: Trained) -> list[Target]:
    """float16 against float32, where it is not the same numbers."""
    return [
        noise_target(stored.subject.name, found, base)
        for stored, (base, *others) in trained
        for found in others
        if found.name == "float16"
    ]


def noise_target(name: str, found: Accuracies, base: Accuracies) -> Target:
    """That accuracies differ by no more than seeds alone do; no bound where one seed is all."""
    difference = compare_seeds(found, base)
    noise = None if math.isnan(difference.noise) else 100 * difference.noise
    bound = "" if noise is None else f" ≤ seed noise, {noise:.2f} points"
    return Target(
        what=f"{name}: accuracy of {found.name} against {base.name}{bound}",
        value=100 * abs(difference.mean),
        wanted=noise,
        at_most=True,
        unit="points",
    )


def _sizes_table(subjects: Sequence[StoredSubject]) -> Table:
    """One line a dtype and encoding; the compressions side by side."""
    header = ["", "dtype", "encoding"]
    for compression in compressions():
        head = "" if compression == "none" else f"{compression}: "
        header += [f"{head}file", f"{head}rows", f"{head}ids, spans"]
    rows = []
    for stored in subjects:
        for encoding in stored.subject.encodings:
            for dtype in DTYPES:
                row = [stored.subject.name, dtype, encoding]
                for compression in compressions():
                    sizes = stored.sizes(Layout(encoding, compression), dtype)
                    row += [f"{each:.1f}" for each in (sizes.file, sizes.rows, sizes.tokens)]
                rows.append(tuple(row))
    return Table(title="Bytes a token", header=tuple(header), rows=tuple(rows))


def _errors_table(subjects: Sequence[StoredSubject]) -> Table:
    rows = [
        (stored.subject.name, dtype, rms, largest, _or_dash(stored.kept_error(dtype)))
        for stored in subjects
        for dtype, (rms, largest) in stored.errors.items()
    ]
    return Table(
        title="Reconstruction error",
        header=("", "dtype", "rms, relative", "largest ÷ largest of its row", "rms kept by build"),
        rows=tuple(rows),
    )


def _or_dash(value: float | None) -> str | float:
    return "–" if value is None else value


def _first_table(first: Sequence[Series]) -> Table:
    return Table(
        title="First epoch of a store just opened",
        header=("", "texts/s, median"),
        rows=tuple((series.name, series.median) for series in first),
    )


def _accuracy_table(trained: Trained) -> Table:
    """In per cent and points, the differences of the same seeds beside them."""
    rows: list[tuple[str, ...]] = []
    for stored, found in trained:
        for each in found:
            difference = compare_seeds(each, found[0])
            cells = (each.mean, each.deviation, difference.mean, difference.error)
            shown = ["–" if math.isnan(cell) else f"{100 * cell:.2f}" for cell in cells]
            seeds = ", ".join(f"{100 * value:.2f}" for value in each.values)
            rows.append((stored.subject.name, each.name, *shown, seeds))
        rows += [
            (stored.subject.name, dtype, *4 * ("–",), f"not trained: the numbers of {BASE}")
            for dtype in DTYPES
            if dtype != BASE and stored.is_exact(dtype)
        ]
    return Table(
        title="Test accuracy, per cent, preset `kim`",
        header=(
            "", "dtype", "mean", "deviation over seeds", f"mean difference to {BASE}",
            "its standard error", "each seed",
        ),
        rows=tuple(rows),
    )  # fmt: skip


_NOTES = (
    f"Reading: batches of {BATCH_SIZE}, another order each round, one thread. The upper table is of"
    " epochs after the first, when checksums have been compared and compressed blocks unpacked (a"
    " shard keeps 128 MiB of them); the table of first epochs has opening the store in it.",
    "Bytes a token: the whole file divided by its tokens; of these the rows (numbers, codes,"
    " dictionary, scales) and the ids and spans. The rest is keys, places, checksums and the gaps"
    " of alignment. A dictionary takes the less a token, the more tokens share it.",
    "Errors are of all rows, against those of float32: √(Σ error² ÷ Σ number²), and the largest"
    " error of a number as a share of its row's largest. What the build keeps with the view is of"
    " a sample; of words, of each distinct token once.",
    "Every layout is compared with the first bit by bit, over all rows; so a dictionary or"
    " compression is not trained on: it would be the same numbers.",
    "Seed noise is the larger of two: twice the standard error of the mean difference, each seed"
    f" compared with the same seed on {BASE}; and the standard deviation of {BASE} over seeds. It"
    " is a generous bound: that a difference is within it is no proof that there is none.",
)


def _subject_notes(subjects: Sequence[StoredSubject]) -> list[str]:
    return [
        f"{stored.subject.name}: {stored.subject.what}; {stored.num_texts:,} distinct texts,"
        f" {stored.num_tokens:,} tokens."
        for stored in subjects
    ]


def _training_notes(trained: Trained, scale: Scale) -> list[str]:
    if not trained:
        return []
    seeds = ", ".join(f"{stored.subject.name} {stored.subject.num_seeds}" for stored, _ in trained)
    return [
        f"Seeds: {seeds}; at most {scale.encoding_epochs} epochs each, to save time: the preset's"
        " own are 25 with a patience of 5, with which one seed on words gave 1 to 2 points more."
        " The numbers of the built-in module are made to fit float16, so that words show nothing of"
        " its rounding; those of a contextual module do."
    ]
