"""The main job on real data: what the project promises of Kim's (2014) data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import cnn
import embedcache


@pytest.fixture(scope="module")
def built(
    kim_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[embedcache.FeatureStore]:
    with embedcache.open_store(tmp_path_factory.mktemp("kim") / "store") as store:
        parts = ("train", "dev", "test")
        sst2 = {part: kim_data / f"sst2.{part}.tsv" for part in parts}
        trec = {part: kim_data / f"trec.{part}.tsv" for part in ("train", "test")}
        assert embedcache.build(store, sst2, dataset="sst2").misses > 9_000
        assert embedcache.build(store, trec, dataset="trec").misses > 5_000
        yield store


def test_building_the_real_corpora_again_computes_nothing(
    built: embedcache.FeatureStore, kim_data: Path
) -> None:
    report = embedcache.build(built, kim_data / "sst2.train.tsv", dataset="again")
    assert (report.misses, report.hits) == (0, report.unique)
    # Nine training sentences of SST-2 stand twice.
    assert report.texts - report.unique == 9


# Fewer epochs than the preset allows: enough for the promise, in less than half the time.
@pytest.mark.parametrize(("dataset", "epochs", "promised"), [("sst2", 5, 0.79), ("trec", 12, 0.91)])
def test_kims_network_on_cached_features_reaches_the_promised_accuracy(
    built: embedcache.FeatureStore, dataset: str, epochs: int, promised: float
) -> None:
    run = cnn.train(built, dataset, cnn.TrainConfig(preset="kim", epochs=epochs, seed=0))
    assert run.metrics["test"]["accuracy"] >= promised
