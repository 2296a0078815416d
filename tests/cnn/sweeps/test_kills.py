"""A sweep that is killed or interrupted loses no finished trial and trains none again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import cnn
from cnn import SweepOptions
from cnn.sweeps import SweepProgress
from embedcache.store import FeatureStore, open_store

SmallStore = Any

ROOT = Path(__file__).parents[3]
SPLITS = ("train", "train", "train", "dev", "test")
NUM_TRIALS = 6
TIMEOUT_S = 240
COMMAND = (
    "sweep", "two", "--name", "killed", "--jobs", "2", "--no-baselines", "--seeds", str(NUM_TRIALS),
    "--grid", "preset=basic", "--grid", "epochs=15", "--grid", "patience=15",
    "--grid", "batch_size=40",
)  # fmt: skip


@pytest.fixture
def made(tmp_path: Path, make_store: Callable[..., SmallStore]) -> SmallStore:
    found = make_store(tmp_path / "store")
    found.put_classes({"bad": 200, "good": 200}, splits=SPLITS, name="two")
    return found


@pytest.fixture
def sweeping(made: SmallStore) -> Iterator[subprocess.Popen[bytes]]:
    """The sweep, as a process of its own group, with at least two trials done and more to do."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from cli.main import main; main()", "--store",
         str(made.store.path), *COMMAND],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while len(made.store.catalog.runs()) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _runs(store: FeatureStore) -> set[str]:
    return {record.run for record in store.catalog.runs()}


def _wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_killed_sweep_goes_on_with_what_is_missing_and_nothing_else(
    made: SmallStore, sweeping: subprocess.Popen[bytes]
) -> None:
    workers = psutil.Process(sweeping.pid).children(recursive=True)
    assert len(workers) >= 2
    sweeping.kill()
    sweeping.wait()
    _wait_until_gone(workers)
    done = _runs(made.store)
    assert 2 <= len(done) < NUM_TRIALS, "killed in the middle"

    told: list[SweepProgress] = []
    with open_store(made.store.path) as store:
        board = cnn.sweep(store, options=SweepOptions(resume="killed"), on_trial=told.append)
        assert (board.done, board.failed, board.missing) == (NUM_TRIALS, 0, 0)
        assert len(told) == NUM_TRIALS - len(done), "what was done is not trained again"
        assert done <= _runs(store), "and none is lost"
        assert len(_runs(store)) == NUM_TRIALS
        trials = {cnn.load_run(store, run).tags["trial"] for run in _runs(store)}
        assert len(trials) == NUM_TRIALS


def test_interrupted_sweep_ends_all_says_so_once_and_keeps_what_is_done(
    made: SmallStore, sweeping: subprocess.Popen[bytes]
) -> None:
    workers = psutil.Process(sweeping.pid).children(recursive=True)
    done = _runs(made.store)
    os.killpg(sweeping.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to every process of it
    _, errors = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 130
    _wait_until_gone(workers)
    lines = errors.decode().splitlines()
    assert lines[-1].startswith("interrupted: what was finished is kept")
    assert not any("Traceback" in line for line in lines)
    assert done <= _runs(made.store)
    board = cnn.sweeps.load_leaderboard(made.store, "killed")
    assert board.done == len(_runs(made.store))
    assert board.missing == NUM_TRIALS - board.done
