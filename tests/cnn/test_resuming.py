"""A training that is interrupted or killed goes on to the very run that it would have been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn import Run, TrainConfig, load_run, train
from cnn.checkpoints import (
    CheckpointFile,
    Snapshot,
    delete_unfinished,
    find_unfinished,
    list_unfinished,
    load_snapshot,
)
from cnn.progress import EpochReport, StepReport
from embedcache.errors import DivergedError, TrainingError, UnknownNameError
from embedcache.store import FeatureStore, open_store
from embedcache.store.upkeep.deleting import delete_datasets, find_versions

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
SPLITS = ("train", "train", "train", "dev", "test")
# Of 90, 30 and 30 texts all batches have one shape, which is compiled once.
KIM = TrainConfig(filters=4, kernel_sizes=(2, 3), epochs=3, batch_size=15, learning_rate=0.02)
# Compiled in a third of the time, for what does not depend on the network.
LINEAR = TrainConfig(preset="linear", epochs=3, batch_size=15, learning_rate=0.02)
CLOCKED = ("seconds", "step_s", "wait_s")


@dataclass(slots=True)
class StopAt:
    """Raises KeyboardInterrupt at the nth step or epoch that it hears of."""

    step: int = 0
    epoch: int = 0

    def on_step(self, _report: StepReport) -> None:
        self.step -= 1
        if self.step == 0:
            raise KeyboardInterrupt

    def on_epoch(self, _report: EpochReport) -> None:
        self.epoch -= 1
        if self.epoch == 0:
            raise KeyboardInterrupt


def interrupt(store: Any, config: TrainConfig, stop: StopAt, **more: Any) -> str:
    """Train until then; the unfinished training's name."""
    with pytest.raises(KeyboardInterrupt):
        train(store, "small", config, on_step=stop.on_step, on_epoch=stop.on_epoch, **more)
    (found,) = list_unfinished(store)
    return found.run


def require_same(run: Run, other: Run) -> None:
    """Everything that the clock does not tell is the same, bit by bit."""
    for ours, theirs in zip(
        run.load_model().get_weights(), other.load_model().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    one, two = run.load_predictions(), other.load_predictions()
    for column in ("part", "fold", "rows", "keys", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
    assert _timeless(run.history) == _timeless(other.history)
    assert run.evaluation == other.evaluation
    assert run.metrics == other.metrics
    assert run.config == other.config
    for field in ("epochs", "best_epoch", "seed", "version", "view", "leaks"):
        assert run.record[field] == other.record[field]


def _timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in report.items() if name not in CLOCKED} for report in history
    ]


def require_nothing_left(store: Any) -> None:
    assert list_unfinished(store) == []
    assert list((store.path / "checkpoints").iterdir()) == []
    assert list(store.layout.tmp.iterdir()) == []


@pytest.fixture
def classes(small: SmallStore) -> SmallStore:
    small.put_classes({"x": 60, "y": 50, "z": 40}, splits=SPLITS)
    return small


TRAINER = """
import json, os, signal, sys, traceback
import cnn, embedcache
from cnn import TrainConfig
from cnn.backend import import_keras

path, config = sys.argv[1], eval(sys.argv[2])

def train(stop, resume):
    kind, _, count = stop.partition(" ")
    left = [int(count or 0)]

    def die(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "write":
        # In the middle of a checkpoint: what was written has no name yet.
        replace = os.replace
        def killing(source, target, **more):
            if str(target).endswith(".npz"):
                die()
            return replace(source, target, **more)
        os.replace = killing
    calls = {"step": {"on_step": die}, "epoch": {"on_epoch": die}}.get(kind, {})
    with embedcache.open_store(path) as store:
        run = cnn.train(store, "small", None if resume else config, resume=resume or None,
                        name=None if resume else "killed", checkpoint_every_s=0, **calls)
    return run.name

# Once: it takes longer than a training. Nothing of it runs before the first training.
import_keras()
for line in sys.stdin:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        continue
    signal.alarm(300)
    try:
        print(json.dumps(train(*json.loads(line))), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


@pytest.fixture
def train_apart() -> Iterator[Callable[..., list[Any]]]:
    """Trains in a new process each time; the run's name, unless it was killed, and the status."""
    with ExitStack() as stack:
        trainers: list[subprocess.Popen[str]] = []

        def run(small: SmallStore, config: TrainConfig, stop: str, resume: str = "") -> list[Any]:
            if not trainers:
                command = [sys.executable, "-W", "ignore", "-c", TRAINER]
                environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
                process = subprocess.Popen(
                    [*command, str(small.store.path), repr(config)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                )  # fmt: skip
                trainers.append(stack.enter_context(process))
            (trainer,) = trainers
            assert trainer.stdin is not None
            assert trainer.stdout is not None
            print(json.dumps([stop, resume]), file=trainer.stdin, flush=True)
            said = [json.loads(trainer.stdout.readline())]
            while not isinstance(said[-1], int):
                said.append(json.loads(trainer.stdout.readline()))
            return said

        yield run


def test_a_training_killed_again_and_again_ends_as_one_that_never_was(
    classes: SmallStore, train_apart: Callable[..., list[Any]]
) -> None:
    config = replace(KIM, folds=3)
    whole = train(classes.store, "small", config, name="whole")
    # Steps and epochs are those since the last kill: in mid-epoch, right after an epoch,
    # while a checkpoint is written, and when the first fold has ended.
    stops = ["step 4", "epoch 1", "write 5", "epoch 2", "step 2"]
    for number, stop in enumerate(stops):
        status = train_apart(classes, config, stop, "killed" if number else "")
        assert status == [-signal.SIGKILL]
        (left,) = list_unfinished(classes.store)
        assert (left.run, left.is_running) == ("killed", False)
    assert train_apart(classes, config, "never", "last") == ["killed", 0]
    require_same(load_run(classes.store, "killed"), whole)
    assert list_unfinished(classes.store) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adadelta", "max_norm": 0.5, "learning_rate": None},
        {"preset": "basic", "dropout": 0.4, "kernel_sizes": None, "class_weights": "balanced"},
        {"preset": "linear", "kernel_sizes": None, "filters": None},
        {"batch_tokens": 96, "length_buckets": True},
        {"folds": 2},
    ],
    ids=["adadelta", "basic", "linear", "buckets", "folds"],
)
def test_an_interrupted_training_goes_on_to_the_same_run(
    classes: SmallStore, changes: dict[str, Any]
) -> None:
    config = replace(KIM, epochs=2, **changes)
    whole = train(classes.store, "small", config)
    name = interrupt(classes.store, config, StopAt(step=3))
    assert len(classes.store.catalog.runs()) == 1
    resumed = train(classes.store, resume=name)
    assert resumed.name == name
    require_same(resumed, whole)
    require_nothing_left(classes.store)


def test_a_trained_table_of_tokens_goes_on_too(small: SmallStore) -> None:
    generator = np.random.default_rng(1)
    words = [f"w{number}" for number in range(30)]
    texts = [" ".join(generator.choice(words, 6)) + f" {number}" for number in range(90)]
    small.put_words(texts)
    labels = [("x",) if "w1 " in f"{text} " else ("y",) for text in texts]
    small.put_dataset(texts, labels, splits=[SPLITS[place % 5] for place in range(90)])
    config = replace(KIM, embedding="multichannel", kernel_sizes=(2,), epochs=2)
    whole = train(small.store, "small", config)
    resumed = train(small.store, resume=interrupt(small.store, config, StopAt(step=5)))
    require_same(resumed, whole)
    assert resumed.predict(texts[:9]) == whole.predict(texts[:9])
    assert load_run(small.store, resumed.name).predict(texts[:9]) == whole.predict(texts[:9])


def test_several_labels_go_on_too(classes: SmallStore) -> None:
    dataset = classes.store.load_dataset("small")
    texts = len(dataset)
    labels = [("a", "b")[: 1 + place % 2] if place % 3 else () for place in range(texts)]
    many = [f"many {place}" for place in range(texts)]
    generator = np.random.default_rng(0)
    classes.put_texts(many, [generator.normal(0, 1, (4, 16)) for _ in many])
    classes.put_dataset(many, labels, splits=[SPLITS[place % 5] for place in range(texts)])
    whole = train(classes.store, "small", LINEAR)
    assert whole.task == "multilabel"
    resumed = train(classes.store, resume=interrupt(classes.store, LINEAR, StopAt(step=4)))
    require_same(resumed, whole)


def test_labels_that_were_given_need_not_be_given_again(classes: SmallStore) -> None:
    labels = ["odd" if place % 2 else "even" for place in range(150)]
    whole = train(classes.store, "small", LINEAR, labels=labels)
    name = interrupt(classes.store, LINEAR, StopAt(step=4), labels=labels)
    with pytest.raises(TrainingError, match="the labels given are not those"):
        train(classes.store, resume=name, labels=labels[::-1])
    require_same(train(classes.store, resume=name, labels=labels), whole)


def test_seconds_and_tags_go_on_too(classes: SmallStore) -> None:
    name = interrupt(classes.store, LINEAR, StopAt(epoch=2), tags={"sweep": "one"})
    before = load_snapshot(classes.store, name).state["elapsed_s"]
    reports: list[StepReport] = []
    run = train(classes.store, resume=name, on_step=reports.append)
    assert run.record["seconds"] > before
    assert run.tags == {"sweep": "one"}
    assert [report.epoch for report in reports] == [3] * 6
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]


def test_an_epoch_goes_on_at_its_next_step_with_its_means(classes: SmallStore) -> None:
    whole: list[StepReport] = []
    train(classes.store, "small", LINEAR, on_step=whole.append)
    name = interrupt(classes.store, LINEAR, StopAt(step=9))
    rest: list[StepReport] = []
    train(classes.store, resume=name, on_step=rest.append)
    timeless = [replace(report, seconds=0.0) for report in whole]
    assert [replace(report, seconds=0.0) for report in rest] == timeless[9:]


# What is refused of an unfinished training: copies of one store, with a training named "left".


@pytest.fixture(scope="module")
def left_behind(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., SmallStore]
) -> Path:
    made = make_store(tmp_path_factory.mktemp("left") / "store")
    made.put_classes({"x": 60, "y": 50, "z": 40}, splits=SPLITS)
    train(made.store, "small", KIM, name="whole")
    interrupt(made.store, KIM, StopAt(step=2), name="left")
    made.put_classes({"x": 20, "y": 20}, name="other")
    return made.store.path


@pytest.fixture
def left(left_behind: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    shutil.copytree(left_behind, tmp_path / "left")
    with open_store(tmp_path / "left") as store:
        yield store


def checkpoint_of(store: FeatureStore) -> Path:
    return store.path / "checkpoints" / "left.npz"


def rewrite_about(store: FeatureStore, **changes: Any) -> None:
    before = load_snapshot(store, "left")
    with CheckpointFile(store, "left", every_s=0) as file:
        file.write(Snapshot({**before.about, **changes}, before.state, before.arrays))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"config": replace(KIM, filters=5)}, "filters has changed, 4 → 5"),
        ({"config": replace(KIM, folds=2)}, "folds has changed, None → 2"),
        ({"dataset": "other"}, "the dataset has changed, small@"),
        ({"view": "ffff"}, "view has changed"),
        ({"name": "another"}, "name has changed"),
        ({"tags": {"a": "b"}}, "tags has changed"),
        ({"labels": ["x", "y", "z"] * 50}, "the labels given are not those"),
    ],
    ids=str,
)
def test_another_training_is_not_taken_for_the_unfinished_one(
    left: FeatureStore, arguments: dict[str, Any], said: str
) -> None:
    before = checkpoint_of(left).read_bytes()
    with pytest.raises(TrainingError, match="cannot go on") as caught:
        train(left, resume="left", **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert checkpoint_of(left).read_bytes() == before


def test_what_is_said_again_is_taken(left: FeatureStore) -> None:
    view = left.load_dataset("small")
    fingerprint = left.view_of_dataset(view).fingerprint
    run = train(left, "small", KIM, resume="le", view=fingerprint[:9], name="left", tags={})
    require_same(run, load_run(left, "whole"))


def test_a_dataset_that_has_changed_is_refused_and_its_version_goes_on(
    left: FeatureStore,
) -> None:
    version = left.load_dataset("small").version
    record = left.catalog.find_dataset("other")
    view = left.view_of_dataset(left.open_dataset(record)).fingerprint
    left.catalog.add_dataset(replace(record, name="small"), view=view, report={})
    with pytest.raises(TrainingError, match="the dataset has changed"):
        train(left, resume="left")
    require_same(train(left, f"small@{version}", resume="left"), load_run(left, "whole"))


def test_a_dataset_that_is_gone_is_told(left: FeatureStore) -> None:
    delete_datasets(left, find_versions(left, "small", every=True))
    with pytest.raises(UnknownNameError, match=r"run left cannot go on: .*no dataset 'small'"):
        train(left, resume="left")


def test_another_backend_is_refused(left: FeatureStore) -> None:
    versions = load_snapshot(left, "left").about["versions"]
    other = {"embedcache": versions["embedcache"], "keras": "3.0.0", "backend": "abacus"}
    rewrite_about(left, versions=other)
    with pytest.raises(
        TrainingError, match=r"cannot go on: keras 3\.0\.0, backend abacus"
    ) as caught:
        train(left, resume="left")
    assert "KERAS_BACKEND=abacus" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.run for each in list_unfinished(left)] == ["left"]


def test_other_code_is_warned_of(left: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(left, resume="left", on_step=StopAt(step=1).on_step)
    assert "cnn.resuming" not in {record.name for record in caplog.records}
    rewrite_about(left, code={"embedcache": "0.1.0", "digest": "0" * 32})
    train(left, resume="left")
    assert "the code of embedcache has changed" in caplog.text


def test_a_training_that_is_alive_is_not_taken_up_or_deleted(left: FeatureStore) -> None:
    with CheckpointFile(left, "left", every_s=0):
        assert find_unfinished(left, "left").is_running
        with pytest.raises(TrainingError, match="trained by another process"):
            train(left, resume="left")
        with pytest.raises(TrainingError, match="trained by another process"):
            delete_unfinished(left, "left")
        with pytest.raises(UnknownNameError, match="that no process is at"):
            train(left, resume="last")
    delete_unfinished(left, "left")
    require_nothing_left(left)
    with pytest.raises(UnknownNameError, match="no unfinished training"):
        train(left, resume="last")


def test_the_newest_unfinished_training_is_the_last(left: FeatureStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(left, "small", KIM, on_step=StopAt(step=1).on_step, name="newer")
    assert find_unfinished(left, "last").run == "newer"
    assert find_unfinished(left, "l").run == "left"
    with pytest.raises(UnknownNameError, match="there are: left, newer"):
        find_unfinished(left, "three")
    with pytest.raises(TrainingError, match="an unfinished training is called 'left'"):
        train(left, "small", KIM, name="left")


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_in_one_line(left: FeatureStore, harm: str) -> None:
    content = bytearray(checkpoint_of(left).read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 1
    harmed = {"cut": content[:-50], "flipped": content, "empty": b""}[harm]
    checkpoint_of(left).write_bytes(harmed)
    with pytest.raises(TrainingError, match="the checkpoint is damaged") as caught:
        train(left, resume="left")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_newer_version_is_refused(left: FeatureStore) -> None:
    with np.load(checkpoint_of(left)) as file:
        arrays = dict(file)
    about = {**json.loads(arrays["about"].tobytes()), "format": 2}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(checkpoint_of(left), **arrays)
    with pytest.raises(TrainingError, match="upgrade embedcache"):
        train(left, resume="left")


def test_checkpoints_are_private(left_behind: Path) -> None:
    folder = left_behind / "checkpoints"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_diverged_training_leaves_nothing_to_resume(classes: SmallStore) -> None:
    config = replace(KIM, preset="basic", learning_rate=1e37)
    with pytest.raises(DivergedError, match="the loss became"):
        train(classes.store, "small", config)
    require_nothing_left(classes.store)


def test_without_checkpoints_nothing_is_written(classes: SmallStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            classes.store, "small", LINEAR, on_step=StopAt(step=3).on_step, checkpoint_every_s=None
        )
    assert not (classes.store.path / "checkpoints").exists()


def test_checkpoints_wait_until_they_cost_little(
    classes: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("cnn.checkpoints.time.monotonic", lambda: now[0])
    with CheckpointFile(classes.store, "one", every_s=30.0) as file:
        assert file.is_due("epoch")
        assert not file.is_due("step")
        assert file.is_due("interrupt")
        file._cost_s = 0.5
        for passed, is_due in ((9.9, False), (10.1, True)):
            now[0] = passed
            assert file.is_due("epoch") is is_due
        now[0] = 30.0
        assert file.is_due("step")
        file._cost_s = 5.0
        assert file.is_due("epoch")
