"""Real processes: what is handed out, what a death costs, and that none outlives its pool."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnn.sweeps.journal import TrialResult
from cnn.sweeps.plan import SweepPoint, Trial
from cnn.sweeps.worker_process import Workplace, limit_threads
from cnn.sweeps.workers import WorkerPool, cores_of_process
from embedcache.errors import DiskFullError, TrainingError
from tests.cnn.sweeps import worker_targets

POINT = SweepPoint({"filters": 8}, "view", {})
TRIALS = [Trial(POINT, seed, "version") for seed in range(4)]


@pytest.fixture
def run_pool(tmp_path: Path) -> Callable[..., dict[int, TrialResult]]:
    """Runs trials on workers of a kind: the results by seed."""

    def run(
        target: Any, *, jobs: int = 2, threads: int = 1, **settings: int
    ) -> dict[int, TrialResult]:
        found: dict[int, TrialResult] = {}

        def keep(trial: Trial, result: TrialResult) -> None:
            assert trial.seed not in found
            found[trial.seed] = result

        workplace = Workplace(str(tmp_path), "sweep", "dataset", threads)
        try:
            WorkerPool(workplace, keep, target, **settings).run(TRIALS, jobs=jobs)
        finally:
            assert psutil.Process().children(recursive=True) == _resource_trackers()
        return found

    return run


def _resource_trackers() -> list[psutil.Process]:
    """The one helper that Python starts with the first spawned process and keeps."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" in " ".join(child.cmdline())
    ]


def test_every_trial_is_answered_by_one_of_the_workers(run_pool: Any) -> None:
    found = run_pool(worker_targets.answer, jobs=2, threads=3)
    assert sorted(found) == [0, 1, 2, 3]
    assert {result.trial for result in found.values()} == {trial.digest for trial in TRIALS}
    workers = {str(result.run) for result in found.values()}
    assert len(workers) == 2
    assert all(worker.endswith("/3") for worker in workers)


def test_more_jobs_than_trials_start_no_idle_worker(run_pool: Any) -> None:
    found = run_pool(worker_targets.answer, jobs=9)
    assert len({result.run for result in found.values()}) <= len(TRIALS)


def test_worker_is_replaced_after_its_share_of_trials(run_pool: Any) -> None:
    found = run_pool(worker_targets.answer, jobs=1, trials_per_worker=3)
    workers = [found[seed].run for seed in range(4)]
    assert workers[0] == workers[1] == workers[2] != workers[3]


def test_trial_whose_worker_died_is_tried_again_in_another(run_pool: Any, tmp_path: Path) -> None:
    found = run_pool(worker_targets.die_at_first_try)
    assert all(result.is_done for result in found.values())
    assert len(found) == len(list(tmp_path.iterdir())) == len(TRIALS)


def test_trial_that_kills_every_worker_fails_with_the_reason_and_alone(run_pool: Any) -> None:
    found = run_pool(worker_targets.die_of_seed_1)
    assert not found[1].is_done
    assert found[1].reason == "its process was ended by SIGKILL (out of memory?), 2 times"
    assert all(found[seed].is_done for seed in (0, 2, 3))


def test_trial_that_breaks_twice_fails_with_the_reason(run_pool: Any) -> None:
    found = run_pool(worker_targets.break_down)
    reasons = {result.reason for result in found.values()}
    assert reasons == {"unexpected ValueError: no, 2 times"}


def test_worker_that_cannot_begin_ends_the_sweep(run_pool: Any) -> None:
    with pytest.raises(TrainingError, match="ended with status 7 before it could begin"):
        run_pool(worker_targets.exit_at_once)


def test_error_that_all_trials_would_meet_ends_the_sweep_as_it_is(run_pool: Any) -> None:
    with pytest.raises(DiskFullError, match="no space"):
        run_pool(worker_targets.stop)


def test_interrupt_ends_the_workers(run_pool: Any, tmp_path: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waiter = threading.Thread(target=interrupt)
    waiter.start()
    with pytest.raises(KeyboardInterrupt):
        run_pool(worker_targets.hang)
    waiter.join()
    for path in tmp_path.glob("*.pid"):
        assert not psutil.pid_exists(int(path.stem))


def test_threads_are_limited_for_a_backend_that_is_imported_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "99")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "5")
    limit_threads(3)
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["TF_NUM_INTEROP_THREADS"] == "5", "what the user has chosen stays"


def test_cores_are_those_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores_of_process() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cores_of_process() == len(before)
