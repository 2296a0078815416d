"""B8: experiments on one corpus, from the cache and with the module in the loop."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import embedcache
from benchmarks.checkpoints import MINILM_PACKAGE, find_minilm, write_tiny_checkpoint
from benchmarks.contextual_peers import HubModule
from benchmarks.corpora import iter_texts, trec_files
from benchmarks.experiment_loops import (
    LOSS_TOLERANCE,
    STEPS_COMPARED,
    Experiment,
    LiveModule,
    TrainedEpochs,
    cached_epoch,
    dataset_epoch,
    resident_epoch,
)
from benchmarks.measure import Contender, Series, elapsed, measure, ratio
from benchmarks.report import Report, Table, Target, named
from benchmarks.scale import Scale
from cnn.config import TrainConfig
from embedcache import FeatureStream
from embedcache.corpus import CorpusOptions, CorpusReader, sources_of
from embedcache.modules.convert.bert import convert_bert_checkpoint

DATASET = "b8"
MAX_TOKENS = 128
EPOCHS = 12
"""Of an experiment, in the table of totals: what `kim` takes on TREC until patience ends it."""
EXPERIMENTS = (1, 3, 10, 100)
CACHED = "an epoch from the cache"
LIVE = "an epoch, the module in the loop"
FIRST_TF_CACHE = "an epoch that fills Dataset.cache()"
LATER_TF_CACHE = "an epoch from Dataset.cache(), filled"
BUILD = "embedcache.build, all misses"
LIMIT = "an epoch of steps alone, batches in memory"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A corpus and the module to put it through.

    Attributes:
        path: Its file.
        texts: Its n texts, UTF-8.
        checkpoint: Of a BERT.
        what: What it all is, for the notes.
    """

    path: Path
    texts: list[bytes]
    checkpoint: Path
    what: str


class _Build:
    """`embedcache.build` of the corpus into a new store.

    Args:
        path: The store's.
        corpus: A labelled file.
        handle: The module's.
    """

    def __init__(self, path: Path, corpus: Path, handle: str) -> None:
        self._path, self._corpus, self._handle = path, corpus, handle

    def remove(self, _number: int) -> None:
        """Remove the store of the last run."""
        shutil.rmtree(self._path, ignore_errors=True)

    def run(self, _number: int) -> float:
        """Build; the texts."""
        with embedcache.open_store(self._path) as store:
            report = embedcache.build(store, self._corpus, module=self._handle, dataset=DATASET)
        return report.texts


def run(scale: Scale, work: Path) -> Report:
    """Measure it, or tell why it cannot be measured here."""
    subject = _find_subject(scale, work)
    if isinstance(subject, str):
        return _report([], skipped=[f"all of it: {subject}"])
    converted = convert_bert_checkpoint(
        subject.checkpoint, work / "module", max_seq_length=MAX_TOKENS
    )
    handle = str(converted.encoder)
    _Build(work / "store", subject.path, handle).run(0)
    batch_size = TrainConfig().resolved().batch_size
    with embedcache.open_store(work / "store", create=False) as store:
        stream = FeatureStream(store, DATASET, batch_size=batch_size, seed=0)
        module = HubModule(converted.encoder, converted.preprocess)
        live = LiveModule(module, subject.texts, stream.labels, batch_size)
        contenders = _trained(stream, live)
        build = _Build(work / "built", subject.path, handle)
        contenders.append(Contender(name=BUILD, role="ours", run=build.run, before=build.remove))
        series = measure(contenders, rounds=scale.rounds, value=elapsed)
        notes = [f"{subject.what}; its last layer, {stream.dim} dimensions.", *_NOTES]
    return _report(series, notes=notes)


def _trained(stream: FeatureStream, live: LiveModule) -> list[Contender]:
    """An epoch of the same experiment, from each source of features."""
    num_classes = len(stream.label_names)
    stored = Experiment(stream.dim, num_classes, stream.dtype)
    exact = Experiment(stream.dim, num_classes, "float32")
    filled = dataset_epoch(live.cached_dataset())
    loops = {
        CACHED: (stored, cached_epoch(stream)),
        LIVE: (exact, live.epoch(stream.order)),
        FIRST_TF_CACHE: (exact, lambda number: dataset_epoch(live.cached_dataset())(number)),
        LATER_TF_CACHE: (exact, filled),
        LIMIT: (stored, resident_epoch(stream)),
    }
    trained = {
        name: TrainedEpochs(name, experiment, epoch, stream.num_texts)
        for name, (experiment, epoch) in loops.items()
    }
    for each in trained.values():  # every function is traced, and the one cache filled
        each.renew(0)
        each.run(0)
    expected = trained[CACHED].losses
    roles = {CACHED: "ours", LIMIT: "limit"}
    return [
        Contender(
            name=name,
            role=roles.get(name, "peer"),
            run=each.run,
            before=each.renew,
            check=partial(each.check, expected=expected if name in _SAME_BATCHES else None),
        )
        for name, each in trained.items()
    ]


def _find_subject(scale: Scale, work: Path) -> Labelled | str:
    """The corpus and the module, or what of them is missing."""
    if not scale.use_real_data:
        path = _write_labelled(work / "corpus.tsv", scale.contextual_texts)
        texts = _read_texts(path)
        checkpoint = write_tiny_checkpoint(work / "checkpoint", texts)
        return Labelled(path, texts, checkpoint, "generated texts, a BERT with random weights")
    files, found = trec_files(), find_minilm()
    if not files:
        return "TREC is not beside the checkout, in ../shared/data"
    if found is None:
        return f"{MINILM_PACKAGE}, which holds the module's weights, is not installed"
    texts = _read_texts(files["train"])
    what = f"TREC's {len(texts):,} training texts, all-MiniLM-L6-v2 as embedcache converts it"
    return Labelled(files["train"], texts, found, what)


def _write_labelled(path: Path, num_texts: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = iter_texts(num_texts, mean_words=6, seed=3)
    lines = [f"{number % 2}\t{text}\n" for number, text in enumerate(texts)]
    path.write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return path


def _read_texts(path: Path) -> list[bytes]:
    reader = CorpusReader(sources_of(path), CorpusOptions())
    return [text for batch in reader for text in batch.texts]


def _report(
    series: list[Series], *, notes: Sequence[str] = (), skipped: Sequence[str] = ()
) -> Report:
    return Report(
        number="B8",
        title="experiments on one corpus, cached and with the module in the loop",
        unit="s",
        cache="warm, all files are in the page cache",
        binds="the training steps: what the cache adds to them is input overhead (B2)",
        series=series,
        targets=_targets(series) if series else [],
        tables=[_totals_table(series)] if series else [],
        notes=list(notes),
        skipped=list(skipped),
    )


def break_even_epochs(series: Sequence[Series]) -> float:
    """Epochs, of all experiments together, after which building has cost less than not building.

    b ÷ (l - c), of the medians: b the build's seconds, l and c those of an epoch with the module
    in the loop and from the cache.
    """
    build, live, cached = (named(series, name).median for name in (BUILD, LIVE, CACHED))
    return build / (live - cached) if live > cached else float("inf")


def _targets(series: list[Series]) -> list[Target]:
    cached, later, limit = (named(series, name) for name in (CACHED, LATER_TF_CACHE, LIMIT))
    return [
        Target(
            what="break-even against the module in the loop: below one epoch",
            value=break_even_epochs(series),
            wanted=1.0,
            at_most=True,
            unit="epochs",
        ),
        Target(what=f"{LIVE} ÷ {CACHED}", value=ratio(named(series, LIVE), cached)),
        Target(what=f"{LATER_TF_CACHE} ÷ {CACHED}", value=ratio(later, cached)),
        Target(what=f"{CACHED} ÷ {LIMIT}", value=ratio(cached, limit)),
    ]


def _totals_table(series: Sequence[Series]) -> Table:
    build, cached, live, first, later = (
        named(series, name).median for name in (BUILD, CACHED, LIVE, FIRST_TF_CACHE, LATER_TF_CACHE)
    )
    rows = tuple(
        (
            number,
            build + number * EPOCHS * cached,
            number * EPOCHS * live,
            number * (first + (EPOCHS - 1) * later),
        )
        for number in EXPERIMENTS
    )
    return Table(
        title=f"Experiments of {EPOCHS} epochs each, added up from the medians above, in seconds",
        header=(
            "experiments",
            "embedcache, build included",
            "module in the loop",
            "Dataset.cache()",
        ),
        rows=rows,
    )


_SAME_BATCHES = frozenset((CACHED, LIVE, LIMIT))
_NOTES = (
    "`kim`, batch 50. The cache, the module in the loop and the limit train on the same batches,"
    f" and their first {STEPS_COMPARED} losses agree within {LOSS_TOLERANCE:g}; `Dataset.cache()`"
    " shuffles by itself, all texts. Each epoch begins with the same weights.",
    "With the module in the loop, preprocessor and encoder are one traced function, padded to the"
    " longest text of each batch; its rows never leave TensorFlow. `Dataset.cache()` keeps them in"
    " memory: it ends with its process, so that each experiment fills one of its own.",
    "The build reads the file, loads the module twice, to probe and to use it, and ends with"
    " durable shards. An experiment with the module in the loop has to load it too: not counted.",
)
