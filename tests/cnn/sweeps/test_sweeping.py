"""A real sweep in real processes: its table, and what a resume trains."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cnn
from cnn import SweepOptions
from cnn.sweeps import Leaderboard, SweepProgress, load_leaderboard
from cnn.sweeps.journal import Journal, TrialResult
from embedcache.errors import TrainingError, UnknownNameError
from embedcache.store import open_store

SmallStore = Any

SPLITS = ("train", "train", "train", "dev", "test")
GRID = {"filters": [2, 8], "preset": ["basic"], "epochs": [2], "batch_size": [15]}


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., SmallStore]
) -> tuple[SmallStore, Leaderboard, list[SweepProgress]]:
    """A store with the sweep "first" of two points and two seeds. Tests may add sweeps."""
    made = make_store(tmp_path_factory.mktemp("swept") / "store")
    made.put_classes({"bad": 60, "good": 90}, splits=SPLITS, name="two")
    told: list[SweepProgress] = []
    options = SweepOptions(seeds=2, jobs=2, name="first")
    board = cnn.sweep(made.store, "two", GRID, options=options, on_trial=told.append)
    return made, board, told


def _run_names(made: SmallStore) -> list[str]:
    return [record.run for record in made.store.catalog.runs()]


def test_each_point_and_baseline_is_trained_with_each_seed(swept: Any) -> None:
    made, board, told = swept
    kinds = sorted((row.baseline, row.differing.get("filters")) for row in board.rows
                   if row.baseline != "majority")  # fmt: skip
    assert kinds == [("", 2), ("", 8), ("linear", None)]
    assert (board.done, board.failed, board.missing) == (6, 0, 0)
    assert len(_run_names(made)) == 6 == len(told)
    assert [progress.finished for progress in told] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in told} == {6}


def test_runs_name_their_sweep_and_have_the_points_configuration(swept: Any) -> None:
    made, board, _ = swept
    row = next(row for row in board.rows if row.differing.get("filters") == 8)
    for seed, name in row.runs.items():
        run = cnn.load_run(made.store, name)
        assert run.tags["sweep"] == "first"
        assert (run.config["filters"], run.config["epochs"]) == (8, 2)
        assert run.config["seed"] == seed


def test_scores_of_a_row_are_those_of_its_runs(swept: Any) -> None:
    made, board, _ = swept
    for row in board.rows:
        if not row.runs:
            continue
        records = [cnn.load_run(made.store, name).record for name in row.runs.values()]
        for part, found in (("dev", row.dev), ("test", row.test)):
            scores = [record[part]["accuracy"] for record in records]
            assert found.mean == pytest.approx(statistics.mean(scores))
            assert found.deviation == pytest.approx(statistics.stdev(scores))


def test_rows_are_ordered_by_dev_alone(swept: Any) -> None:
    _, board, _ = swept
    means = [row.dev.mean for row in board.rows]
    assert means == sorted(means, reverse=True)
    assert board.best is next(row for row in board.rows if not row.baseline)


def test_majority_class_is_its_share_of_each_part(swept: Any) -> None:
    made, board, _ = swept
    dataset = made.store.load_dataset("two")
    (row,) = [row for row in board.rows if row.baseline == "majority"]
    for split, found in (("dev", row.dev), ("test", row.test)):
        labels = dataset.first_labels(dataset.rows_of_split(split))
        assert found.mean == pytest.approx((labels == dataset.label_names.index("good")).mean())
        assert found.deviation == 0


def test_view_without_dictionary_says_why_there_is_no_random_embedding(swept: Any) -> None:
    _, board, _ = swept
    (note,) = board.notes
    assert "no random embedding to compare with" in note
    assert "keeps no dictionary" in note


def test_leaderboard_is_found_again(swept: Any) -> None:
    made, board, _ = swept
    assert load_leaderboard(made.store, "first") == board
    with pytest.raises(UnknownNameError, match="no sweep 'nope'"):
        load_leaderboard(made.store, "nope")


def test_resume_of_a_finished_sweep_trains_nothing(swept: Any) -> None:
    made, board, _ = swept
    before = _run_names(made)
    again = cnn.sweep(made.store, options=SweepOptions(resume="first"), on_trial=_forbidden)
    assert again == board
    same = cnn.sweep(
        made.store, "two", GRID, options=SweepOptions(resume="first", seeds=2), on_trial=_forbidden
    )
    assert same == board, "the same grid again adds nothing"
    assert _run_names(made) == before


def _forbidden(progress: SweepProgress) -> None:
    raise AssertionError(f"trained again: {progress}")


def test_lost_journal_files_are_found_in_the_catalog_again(swept: Any) -> None:
    made, board, _ = swept
    folder = made.store.path / "sweeps" / "first" / "trials"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        for path in kept:
            path.unlink()
        again = cnn.sweep(made.store, options=SweepOptions(resume="first"), on_trial=_forbidden)
        assert again == board
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


@pytest.fixture
def copy(swept: Any, tmp_path: Path) -> Iterator[SmallStore]:
    """A copy of the store, for a test to change."""
    made, _, _ = swept
    shutil.copytree(made.store.path, tmp_path / "copy")
    with open_store(tmp_path / "copy") as store:
        yield replace(made, store=store)


def test_changed_dataset_is_refused_with_both_ways_out(copy: SmallStore) -> None:
    dataset = copy.store.load_dataset("two")
    copy.put_classes({"bad": 60, "good": 91}, splits=SPLITS, name="two")
    with pytest.raises(TrainingError, match=r"^[^\n]*$") as caught:
        cnn.sweep(copy.store, "two", options=SweepOptions(resume="first"))
    said = str(caught.value)
    assert f"sweep first is of two@{dataset.version[:12]}" in said
    assert f"embedcache sweep two@{dataset.version[:12]} --resume first" in said
    for name in (None, f"two@{dataset.version[:12]}"):
        options = SweepOptions(resume="first")
        assert cnn.sweep(copy.store, name, options=options, on_trial=_forbidden).missing == 0


def test_sweep_stays_with_its_view_when_the_dataset_gets_another(
    swept: Any, copy: SmallStore
) -> None:
    _, board, _ = swept
    other = replace(copy.view, output="other")
    copy.store.catalog.add_view(other, "builtin:none")
    record = copy.store.catalog.find_dataset("two")
    copy.store.catalog.add_dataset(record, view=other.fingerprint, report={})
    options = SweepOptions(resume="first")
    assert cnn.sweep(copy.store, "two", GRID, options=options, on_trial=_forbidden) == board


def test_layer_that_is_another_view_by_now_is_refused(copy: SmallStore) -> None:
    journal = Journal(copy.store, "first")
    plan = journal.load_plan()
    with journal.locked():
        points = [replace(point, label={"layer": "3"}, view="0" * 32) for point in plan.points]
        journal.save_plan(replace(plan, points=tuple(points)))
    view = replace(copy.view, output="3")
    copy.store.catalog.add_view(view, "builtin:none")
    named = replace(copy, view=view)
    named.put_classes({"bad": 60, "good": 90}, splits=SPLITS, name="two")
    with pytest.raises(TrainingError, match=r"layer=3 is view \w+ now, and was 0{12} when the"):
        cnn.sweep(copy.store, "two", {"layer": ["3"]}, options=SweepOptions(resume="first"))


def test_name_that_is_taken_is_refused(swept: Any) -> None:
    made, _, _ = swept
    with pytest.raises(TrainingError, match="a sweep 'first' already; go on with it with --res"):
        cnn.sweep(made.store, "two", GRID, options=SweepOptions(name="first"))


def test_sweep_that_another_process_is_at_is_refused(swept: Any) -> None:
    made, _, _ = swept
    with (
        Journal(made.store, "first").locked(),
        pytest.raises(TrainingError, match="another process is at it"),
    ):
        cnn.sweep(made.store, options=SweepOptions(resume="first"))


@pytest.mark.parametrize(
    ("grid", "options", "said"),
    [
        ({"nope": [1]}, SweepOptions(), "a grid has no field 'nope'"),
        ({"view": ["a"], "layer": ["1"]}, SweepOptions(), "give view or layer, not both"),
        ({"seed": [1, 2]}, SweepOptions(seeds=3), "the grid names seeds, and so does --seeds"),
        ({}, SweepOptions(random=3), "points are drawn from a grid"),
    ],
)
def test_sweep_that_cannot_be_is_refused_before_it_begins(
    swept: Any, grid: dict[str, Any], options: SweepOptions, said: str
) -> None:
    made, _, _ = swept
    with pytest.raises(ValueError, match=said):
        cnn.sweep(made.store, "two", grid, options=options)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"view": ["zz"]}, "no view 'zz'"),
        ({"layer": ["7"]}, "has the layer '7'; .*embedcache build"),
        ({"batch_size": [9999]}, "batch size 9999 is larger than the"),
    ],
)
def test_what_every_trial_would_meet_is_told_before_the_first(
    swept: Any, grid: dict[str, Any], said: str
) -> None:
    made, board, _ = swept
    before = _run_names(made)
    with pytest.raises((UnknownNameError, TrainingError), match=said):
        cnn.sweep(made.store, f"two@{board.version}", grid, on_trial=_forbidden)
    assert _run_names(made) == before


def test_failed_trials_leave_the_others_and_are_tried_again_on_request_only(
    tmp_path: Path, make_store: Callable[..., SmallStore]
) -> None:
    made = make_store(tmp_path / "store")
    made.put_classes({"bad": 20, "good": 20}, splits=SPLITS)
    grid = {"learning_rate": [1e-3, 1e38], "preset": ["basic"], "epochs": [1], "filters": [2]}
    options = SweepOptions(name="diverging", baselines=False)
    board = cnn.sweep(made.store, "small", grid, options=options)
    assert (board.done, board.failed, board.missing) == (1, 1, 0)
    bad = board.rows[-1]
    assert bad.dev is None
    assert bad.settings["learning_rate"] == 1e38
    assert "loss became" in bad.failures[0]
    resumed = SweepOptions(resume="diverging")
    assert cnn.sweep(made.store, options=resumed, on_trial=_forbidden) == board
    told: list[SweepProgress] = []
    again = replace(resumed, retry_failed=True)
    assert cnn.sweep(made.store, options=again, on_trial=told.append).failed == 1
    assert [progress.trial.point.settings["learning_rate"] for progress in told] == [1e38]


def test_sweep_of_which_every_trial_failed_is_an_error_with_the_first_reason(
    copy: SmallStore,
) -> None:
    journal = Journal(copy.store, "failing")
    plan = replace(Journal(copy.store, "first").load_plan(), name="failing")
    with journal.locked():
        journal.save_plan(plan)
        for trial in plan.trials:
            journal.add(TrialResult.failed(trial.digest, f"seed {trial.seed} is unlucky"))
    with pytest.raises(TrainingError, match="all 6 trainings failed; the first: seed 0 is unlucky"):
        cnn.sweep(copy.store, options=SweepOptions(resume="failing"), on_trial=_forbidden)


@pytest.mark.parametrize("field", ["random", "seeds", "jobs"])
def test_options_that_cannot_be_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1: got 0"):
        SweepOptions(**{field: 0})
    with pytest.raises(ValueError, match="begun under a name or resumed by it"):
        SweepOptions(name="a", resume="b")
