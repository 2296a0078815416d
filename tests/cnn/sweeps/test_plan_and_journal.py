"""What a sweep remembers: which trials are the same, and what became of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn.sweeps.journal import Journal, TrialResult, newest_sweep, sweep_names
from cnn.sweeps.plan import (
    SweepPlan,
    SweepPoint,
    Trial,
    checked_sweep_name,
    distinct_points,
    new_sweep_name,
)
from embedcache.errors import StoreError, TrainingError, UnknownNameError
from embedcache.store.store import FeatureStore

ROOT = Path(__file__).parents[3]
POINT = SweepPoint({"filters": 8, "kernel_sizes": (3, 4)}, "v" * 32, {"layer": "3"})
PLAN = SweepPlan(
    "first",
    "two",
    "f" * 32,
    (POINT, replace(POINT, settings={}, baseline="linear")),
    (0, 1),
    ("n",),
)
DONE = TrialResult(PLAN.trials[0].digest, "run-1", {"accuracy": 0.5}, None, 1.5)


def test_digest_of_a_trial_does_not_change_with_versions() -> None:
    # Golden: another digest would train finished trials of older stores again.
    assert Trial(POINT, 3, "f" * 32).digest == "35596111dc4037d8ed761d4358d9e65d"


def test_trials_are_told_apart_by_all_that_changes_them() -> None:
    trial = Trial(POINT, 0, "a")
    others = [
        replace(trial, seed=1),
        replace(trial, version="b"),
        replace(trial, point=replace(POINT, view="w" * 32)),
        replace(trial, point=replace(POINT, settings={"filters": 9, "kernel_sizes": (3, 4)})),
    ]
    assert len({each.digest for each in (trial, *others)}) == 5


def test_trials_are_the_same_however_they_were_asked_for() -> None:
    trial = Trial(POINT, 0, "a")
    spelled = {"kernel_sizes": [3, 4], "filters": 8, "preset": "kim", "dropout": None}
    same = replace(POINT, settings=spelled, label={"view": "v"}, baseline="linear")
    assert replace(trial, point=same).digest == trial.digest


def test_points_that_train_the_same_count_once() -> None:
    spelled = replace(POINT, settings={"filters": 8, "kernel_sizes": (3, 4), "dropout": 0.5})
    other = replace(POINT, view="w" * 32)
    assert distinct_points([POINT, spelled, other]) == (POINT, other), "0.5 is kim's default"


def test_first_seed_of_every_point_comes_first() -> None:
    assert [trial.seed for trial in PLAN.trials] == [0, 0, 1, 1]


def test_resumed_plan_keeps_its_order_and_gets_what_is_new() -> None:
    new = replace(POINT, settings={"filters": 9})
    both = PLAN.with_added(replace(PLAN, name="x", points=(new, POINT), seeds=(1, 2)))
    assert both.points == (*PLAN.points, new)
    assert (both.name, both.seeds) == ("first", (0, 1, 2))


def test_plan_comes_back_from_the_store_as_it_was(store: FeatureStore) -> None:
    journal = Journal(store, "first")
    with journal.locked():
        journal.save_plan(PLAN)
    assert Journal(store, "first").load_plan() == PLAN
    assert not list(store.layout.tmp.iterdir())


def test_results_come_back_as_they_were(store: FeatureStore) -> None:
    journal = Journal(store, "first")
    failed = TrialResult.failed(PLAN.trials[1].digest, "the loss became nan")
    journal.add(DONE)
    journal.add(failed)
    assert journal.results() == {DONE.trial: DONE, failed.trial: failed}
    assert (DONE.is_done, failed.is_done) == (True, False)
    again = replace(DONE, trial=failed.trial)
    journal.add(again)
    assert journal.results()[failed.trial] == again, "what was tried again counts"


def test_unknown_sweep_is_refused_with_those_there_are(store: FeatureStore) -> None:
    with pytest.raises(UnknownNameError, match=r"no sweep 'nope' in .*; there are: none"):
        Journal(store, "nope").load_plan()
    for name in ("b", "a"):
        with Journal(store, name).locked():
            Journal(store, name).save_plan(replace(PLAN, name=name))
    with pytest.raises(UnknownNameError, match="there are: b, a"):
        Journal(store, "nope").load_plan()


def test_last_sweep_is_the_one_that_was_begun_last(store: FeatureStore) -> None:
    for name, dataset in (("b", "two"), ("a", "four")):
        with Journal(store, name).locked():
            Journal(store, name).save_plan(replace(PLAN, name=name, dataset=dataset))
    Journal(store, "b").save_plan(replace(PLAN, name="b"))  # as a resume does
    assert sweep_names(store) == ["b", "a"]
    assert newest_sweep(store) == "a"
    assert newest_sweep(store, dataset="two") == "b"
    with pytest.raises(UnknownNameError, match="no sweep of dataset 'x' to go on with"):
        newest_sweep(store, dataset="x")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"trial": 1}', '{"name": "first"}'])
def test_damaged_file_is_one_clear_line(store: FeatureStore, content: str) -> None:
    journal = Journal(store, "first")
    journal.save_plan(PLAN)
    journal.add(DONE)
    folder = store.path / "sweeps" / "first"
    (folder / "trials" / f"{DONE.trial}.json").write_text(content)
    with pytest.raises(StoreError, match=f"{DONE.trial}.json: is damaged.*delete it"):
        journal.results()
    (folder / "plan.json").write_text(content)
    with pytest.raises(StoreError, match=r"plan.json: is damaged"):
        journal.load_plan()


def test_sweep_is_held_by_one_process_and_free_when_that_is_killed(store: FeatureStore) -> None:
    code = (
        "import sys, time\n"
        "from cnn.sweeps.journal import Journal\n"
        "from embedcache.store.store import FeatureStore\n"
        "with Journal(FeatureStore(sys.argv[1]), 'first').locked():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(TrainingError, match="first: another process is at it"),
        Journal(store, "first").locked(),
    ):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with Journal(store, "first").locked():
        pass


def test_names_fit_folders() -> None:
    name = new_sweep_name("Mä/rchen 🐸")
    assert checked_sweep_name(name) == name
    for wrong in ("", "..", "a/b", ".x", "x" * 101, "ä"):
        with pytest.raises(TrainingError, match="cannot name a sweep"):
            checked_sweep_name(wrong)


def test_records_are_plain_json() -> None:
    record: Any = json.loads(json.dumps(PLAN.to_record()))
    assert SweepPlan.from_record(record) == PLAN
