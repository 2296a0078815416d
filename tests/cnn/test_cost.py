"""The cost ledger and the lineage: what the catalog tells of where features come from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cnn import Run
from cnn.cost import RunCost, cost_ledger
from cnn.lineage import code_version
from embedcache.store.database.records import DatasetRecord

SmallStore = Any
RUN = RunCost(seconds=20.0, steps=100, texts=5000)


def put(small: SmallStore, name: str, version: str, **report: Any) -> None:
    record = DatasetRecord(name, version, 10, 8, [], 0.0)
    small.store.catalog.add_dataset(record, view=small.view.fingerprint, report=report)


def ledger(small: SmallStore, version: str) -> dict[str, Any]:
    found = cost_ledger(small.store, version=version, view=small.view.fingerprint, run=RUN)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_features_cost_what_their_builds_took(small: SmallStore) -> None:
    small.put_texts(["a", "b"], [np.ones((2, 16))] * 2)
    put(small, "one", "v1", misses=6, seconds=3.0, bytes=700)
    put(small, "one", "v1", misses=2, seconds=1.0, bytes=100)
    put(small, "other", "v2", misses=100, seconds=12.0, bytes=9000)
    found = ledger(small, "v1")
    assert found["features"]["seconds"] == 4.0
    assert found["features"]["bytes"] == 800
    assert found["features"]["texts"] == found["features"]["distinct_texts"] == 8
    assert found["features"]["note"] is None
    shards = small.store.catalog.shards()
    assert found["features"]["view_bytes"] == sum(shard.num_bytes for shard in shards) > 0
    assert found["run"] == {"seconds": 20.0, "steps": 100, "texts": 5000}
    # 108 texts in 16 s: 5,000 would take 740.7 s more.
    assert found["in_loop"]["texts_per_second"] == pytest.approx(108 / 16)
    assert found["in_loop"]["module_seconds"] == pytest.approx(5000 * 16 / 108)
    assert found["in_loop"]["seconds"] == pytest.approx(20 + 5000 * 16 / 108)
    assert found["in_loop"]["ratio"] == pytest.approx(1 + 250 * 16 / 108)
    assert found["in_loop"]["ratio_with_features"] == pytest.approx(
        (20 + 5000 * 16 / 108) / (20 + 4)
    )


def test_the_module_is_loaded_once_in_the_loop_not_with_every_text(small: SmallStore) -> None:
    put(small, "one", "v1", misses=6, seconds=9.0, loading_seconds=7.0, bytes=700)
    put(small, "one", "v1", misses=2, seconds=6.0, loading_seconds=5.0, bytes=100)
    put(small, "one", "v1", misses=0, seconds=1.0, loading_seconds=0.1, bytes=0)
    found = ledger(small, "v1")["in_loop"]
    assert found["texts_per_second"] == pytest.approx(8 / 3)
    assert found["loading_seconds"] == pytest.approx(6.0)
    assert found["module_seconds"] == pytest.approx(6.0 + 5000 * 3 / 8)


def test_texts_of_other_builds_are_noted(small: SmallStore) -> None:
    put(small, "one", "v1", misses=5, seconds=2.0, bytes=1)
    assert (
        "3 of 8 texts were stored by builds of other corpora"
        in ledger(small, "v1")["features"]["note"]
    )


def test_what_is_not_known_is_null_and_says_why(small: SmallStore) -> None:
    put(small, "one", "v1")
    found = ledger(small, "v1")
    assert found["features"]["seconds"] is None
    assert "the catalog was lost" in found["features"]["note"]
    assert found["in_loop"]["ratio"] is None
    assert found["in_loop"]["note"] == "no build report tells the rate"


def test_imported_features_cost_nothing_that_is_known(make_store: Any, tmp_path: Any) -> None:
    small = make_store(tmp_path / "store", signature="imported")
    put(small, "one", "v1", misses=8, seconds=2.0, bytes=10)
    found = ledger(small, "v1")
    assert (found["features"]["seconds"], found["in_loop"]["ratio"]) == (None, None)
    assert found["features"]["note"].startswith("imported")


def test_a_run_counts_the_texts_that_went_through_its_model(two_run: Run) -> None:
    epochs = two_run.record["epochs"]
    assert two_run.cost["run"]["texts"] == epochs * (120 + 40) + 40
    assert two_run.cost["run"]["steps"] == sum(report["steps"] for report in two_run.history)
    assert two_run.cost["run"]["seconds"] == two_run.record["seconds"]


def test_lineage_leads_from_the_dataset_to_the_run(shared: SmallStore, two_run: Run) -> None:
    lineage = two_run.lineage
    assert lineage["dataset"]["version"] == two_run.record["version"]
    assert lineage["dataset"]["documents"] == 200
    assert lineage["view"]["fingerprint"] == two_run.record["view"]
    assert lineage["module"]["digest"] == shared.view.module_digest
    assert lineage["module"]["handle"] == "builtin:none"
    assert lineage["run"]["run"] == two_run.name
    assert lineage["run"]["started_at"] <= lineage["run"]["finished_at"]
    assert lineage["run"]["code"] == code_version()


def test_run_files_tell_what_made_it(two_run: Run) -> None:
    details = two_run.details
    assert {"python", "system", "machine"} <= set(details["platform"])
    assert {"embedcache", "keras", "backend"} <= set(details["versions"])
    assert len(details["code"]["digest"]) == 32
    assert details["task"] == "single"
