"""B4: building with a context-free module, texts/s."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

import embedcache
from benchmarks.corpora import write_texts
from benchmarks.machine import force_to_device, import_tensorflow
from benchmarks.measure import Contender, Series, measure, ratio
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale
from embedcache.keys import keys_of_utf8
from embedcache.modules.handles import resolve_handle
from embedcache.modules.saved_model import load_saved_model

HANDLE = "builtin:en-words-128"
DIM = 128
LARGE_BATCH = 4096
SMALL_BATCH = 64
OURS = "embedcache.build, all misses"
EACH_BATCH = f"each batch's tokens through the module, batches of {LARGE_BATCH:,} texts"
EACH_SMALL_BATCH = f"each batch's tokens through the module, batches of {SMALL_BATCH}"
EACH_TEXT = "each text's tokens through the module"
LIMIT = "tokenise + hash"


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    module = load_saved_model(HANDLE, resolve_handle(HANDLE))
    corpus = write_texts(work / "corpus.txt", scale.build_texts, mean_words=21)
    texts = corpus.read_bytes().splitlines()
    short = texts[: scale.slow_build_texts]
    baselines = (
        (EACH_BATCH, texts, LARGE_BATCH),
        (EACH_SMALL_BATCH, short, SMALL_BATCH),
        (EACH_TEXT, short, 1),
    )
    contenders = [_ours(corpus, len(texts), short, work / "store")]
    for name, part, batch_texts in baselines:
        path = work / f"{batch_texts}.h5"
        embed = partial(_embed_every_token, module, part, batch_texts, path)
        contenders.append(_baseline(name, embed, path, num_inspected=len(short)))
    limit = partial(_tokenise_and_hash, module, corpus)
    contenders.append(Contender(name=LIMIT, role="limit", run=limit))
    series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    return Report(
        number="B4",
        title="building with a context-free module, every text a miss",
        unit="texts/s",
        cache="warm, the corpus and the module's files are in the page cache",
        binds="the module's own tokeniser: character tables looked up by TensorFlow; after it, in"
        " embedcache's time, the dictionary of tokens in Python, the tokens never seen before,"
        " and loading the module twice",
        series=series,
        targets=_targets(series),
        notes=[
            f"{len(texts):,} generated texts of SST-2's length mix, words by Zipf's law from the"
            f" vocabulary of `{HANDLE}`; the two slow peers take the first {len(short):,}.",
            "TensorFlow is imported before. embedcache's time has the module loaded twice in it,"
            " as a new store does: to probe it and to use it; the others have it loaded already."
            " All force their features to the device; the peers write one packed HDF5 file,"
            " without keys, catalog, or the spans that embedcache finds and stores. Features of"
            f" the first {len(short):,} texts compared by digest.",
        ],
    )


def _targets(series: list[Series]) -> list[Target]:
    ours = named(series, OURS)
    targets = [
        Target(what=f"≥ 20 × {name}", value=ratio(ours, named(series, name)), wanted=20.0)
        for name in (EACH_BATCH, EACH_SMALL_BATCH, EACH_TEXT)
    ]
    limit = named(series, LIMIT)
    ceiling = ratio(limit, named(series, EACH_BATCH))
    return [
        *targets,
        Target(what=f"share of the limit, {LIMIT}", value=ratio(ours, limit), unit="%"),
        Target(what=f"the limit itself ÷ {EACH_BATCH}", value=ceiling),
    ]


def _ours(corpus: Path, num_texts: int, inspected: list[bytes], path: Path) -> Contender:
    def build(_number: int) -> int:
        with embedcache.open_store(path) as store:
            report = embedcache.build(store, corpus, module=HANDLE, dataset="b4")
        if report.texts != num_texts or report.hits:
            raise RuntimeError(f"not a build of misses: {report}")
        return report.texts

    def inspect() -> Mapping[str, str]:
        with embedcache.open_store(path, create=False) as store:
            features = store.get(store.newest_view(), [text.decode() for text in inspected])
        return _digest(features.values, np.diff(features.row_splits))

    def remove(_number: int) -> None:
        shutil.rmtree(path, ignore_errors=True)

    return Contender(name=OURS, role="ours", run=build, before=remove, inspect=inspect)


def _baseline(
    name: str, embed: Callable[[int], int], path: Path, *, num_inspected: int
) -> Contender:
    def inspect() -> Mapping[str, str]:
        with h5py.File(path, "r") as file:
            lengths = file["lengths"][:num_inspected]
            return _digest(file["values"][: int(lengths.sum())], lengths)

    return Contender(name=name, role="peer", run=embed, inspect=inspect)


def _embed_every_token(
    module: Any, texts: list[bytes], batch_texts: int, path: Path, _number: int
) -> int:
    """The usual way: the tokens of each batch through the module, whatever came before."""
    tf = import_tensorflow()
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        values = file.create_dataset(
            "values", (0, DIM), "<f2", maxshape=(None, DIM), chunks=(4096, DIM)
        )
        lengths = []
        for batch in _batches(texts, batch_texts):
            tokens = module.tokenize(tf.constant(batch, tf.string))
            lengths.append(np.diff(tokens.row_splits.numpy()))
            rows = module(tokens.flat_values).numpy().astype(np.float16)
            values.resize(len(values) + len(rows), axis=0)
            values[len(values) - len(rows) :] = rows
        file["lengths"] = np.concatenate(lengths)
    force_to_device(path)
    return len(texts)


def _tokenise_and_hash(module: Any, corpus: Path, _number: int) -> int:
    """What no build can do without: read, hash and split every text."""
    tf = import_tensorflow()
    num_texts = 0
    for batch in _batches(corpus.read_bytes().splitlines(), LARGE_BATCH):
        keys_of_utf8(batch)
        tokens: Any = module.tokenize(tf.constant(batch, tf.string))
        num_texts += len(tokens.row_splits) - 1
    return num_texts


def _batches(texts: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _digest(values: Any, lengths: Any) -> Mapping[str, str]:
    raw = np.ascontiguousarray(values).tobytes() + np.asarray(lengths, np.int64).tobytes()
    return {"features of the first texts": xxhash.xxh3_64_hexdigest(raw)}
