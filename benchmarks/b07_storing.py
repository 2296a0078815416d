"""B7: storing features durably, MB/s."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

import embedcache
from benchmarks.machine import force_to_device, import_tensorflow, installed_version
from benchmarks.measure import Contender, measure, ratio
from benchmarks.report import Report, Target, best_peer, named
from benchmarks.scale import Scale
from embedcache import FeatureStore, FeatureView, RaggedArray
from embedcache.keys import Keys
from embedcache.store.writer import WriterLimits

DIM = 128
OURS = "ShardWriter.flush, dense"
PER_TEXT = "one HDF5 dataset per text"
LIMIT = "write + fsync of the same bytes"
VIEW = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="space", dim=DIM)


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    features, keys = _make_features(scale.storing_texts)
    contenders = [_ours(features, keys, work / "store"), _per_text(features, keys, work / "t.h5")]
    skipped = []
    if installed_version("lmdb") is None:
        skipped.append("LMDB: the package lmdb is not installed")
    else:
        contenders.append(_lmdb(features, keys, work / "lmdb"))
    contenders.append(_tfrecord(features, keys, work / "t.tfrecord"))
    contenders.append(_limit(features, keys, work / "plain"))
    series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    ours, best = named(series, OURS), best_peer(series)
    share = ratio(ours, named(series, LIMIT))
    megabytes = features.values.nbytes / 1e6
    return Report(
        number="B7",
        title="storing features, durable when it returns",
        unit="MB/s",
        cache="nothing is read; every file is new, and forced to the device",
        binds="the copy into the page cache and the device: on their way there the rows are taken"
        " into key order and hashed, a piece at a time, in the processor's cache. The limit reads"
        " its bytes from memory",
        series=series,
        targets=[
            Target(
                what=f"≥ 1.3 × {best.name} (the best other)", value=ratio(ours, best), wanted=1.3
            ),
            Target(what=f"× {PER_TEXT}", value=ratio(ours, named(series, PER_TEXT))),
            Target(what="share of the limit", value=share, unit="%"),
        ],
        notes=[
            f"{len(keys):,} texts, {len(features.values):,} random float16 rows of {DIM}:"
            f" {megabytes:.0f} MB in one shard. `flush` sorts, checksums, writes, forces file and"
            " folder to the device and commits to the catalog; the peers write and fsync."
            " All are read back and compared by digest.",
        ],
        skipped=skipped,
    )


def _make_features(num_texts: int) -> tuple[RaggedArray, Keys]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 36, num_texts)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.standard_normal((int(splits[-1]), DIM), np.float32).astype(np.float16)
    keys = rng.integers(0, 256, (num_texts, 16), np.uint8)
    return RaggedArray(values, splits), keys


def _ours(features: RaggedArray, keys: Keys, path: Path) -> Contender:
    stores: list[FeatureStore] = []
    lengths, flags = features.lengths, np.zeros(len(keys), np.uint8)

    def renew(_number: int) -> None:
        while stores:
            stores.pop().close()
        shutil.rmtree(path, ignore_errors=True)
        store = embedcache.open_store(path)
        store.catalog.add_view(VIEW, "")
        stores.append(store)

    def write(_number: int) -> float:
        writer = stores[0].writer(VIEW, limits=WriterLimits(encoding="dense"))
        writer.add_values(keys, lengths, flags, values=features.values)
        writer.flush()
        return features.values.nbytes / 1e6

    def inspect() -> Mapping[str, str]:
        reader = stores[0].reader(VIEW)
        return _digest(zip(map(bytes, keys), reader.gather(reader.locate(keys)), strict=True))

    return Contender(name=OURS, role="ours", run=write, before=renew, inspect=inspect)


def _per_text(features: RaggedArray, keys: Keys, path: Path) -> Contender:
    def write(_number: int) -> float:
        with h5py.File(path, "w") as file:
            for key, matrix in zip(keys, features, strict=True):
                file[bytes(key).hex()] = matrix
        force_to_device(path)
        return features.values.nbytes / 1e6

    def inspect() -> Mapping[str, str]:
        with h5py.File(path, "r") as file:
            return _digest((bytes.fromhex(name), file[name][()]) for name in file)

    return _peer(PER_TEXT, path, write, inspect)


def _lmdb(features: RaggedArray, keys: Keys, path: Path) -> Contender:
    import lmdb

    size = 3 * features.values.nbytes + (64 << 20)

    def write(_number: int) -> float:
        # Commits are forced to the device by default.
        with (
            lmdb.open(str(path), map_size=size) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, matrix in zip(keys, features, strict=True):
                transaction.put(bytes(key), np.ascontiguousarray(matrix).data)
        return features.values.nbytes / 1e6

    def inspect() -> Mapping[str, str]:
        with lmdb.open(str(path), map_size=size) as environment, environment.begin() as reading:
            return _digest((key, _rows(raw)) for key, raw in reading.cursor())

    return _peer("LMDB, one transaction", path, write, inspect)


def _tfrecord(features: RaggedArray, keys: Keys, path: Path) -> Contender:
    tf = import_tensorflow()

    def write(_number: int) -> float:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for key, matrix in zip(keys, features, strict=True):
                writer.write(bytes(key) + np.ascontiguousarray(matrix).tobytes())
        force_to_device(path)
        return features.values.nbytes / 1e6

    def inspect() -> Mapping[str, str]:
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        return _digest((raw[:16], _rows(raw[16:])) for raw in records)

    return _peer("TFRecord", path, write, inspect)


def _limit(features: RaggedArray, keys: Keys, path: Path) -> Contender:
    def write(_number: int) -> float:
        with path.open("wb", buffering=0) as file:
            for array in (keys, features.row_splits, features.values):
                raw = array.reshape(-1).view(np.uint8).data
                while raw:
                    raw = raw[file.write(raw) :]
            os.fsync(file.fileno())
        return features.values.nbytes / 1e6

    return Contender(name=LIMIT, role="limit", run=write, before=_removal(path))


def _peer(name: str, path: Path, write: Any, inspect: Any) -> Contender:
    return Contender(name=name, role="peer", run=write, before=_removal(path), inspect=inspect)


def _removal(path: Path) -> Any:
    def remove(_number: int) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)

    return remove


def _rows(raw: bytes) -> NDArray[Any]:
    return np.frombuffer(raw, np.float16).reshape(-1, DIM)


def _digest(entries: Iterator[tuple[bytes, NDArray[Any]]]) -> Mapping[str, str]:
    """Of all keys with their rows, in whatever order."""
    total = num_texts = 0
    for key, rows in entries:
        total += xxhash.xxh3_64_intdigest(key + np.ascontiguousarray(rows).tobytes())
        num_texts += 1
    return {"features": f"{num_texts} texts, {total % (1 << 64):016x}"}
