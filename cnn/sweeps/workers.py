"""Trials in processes of their own: a share of the cores each, and one death costs one trial.

The processes are spawned, not forked: neither TensorFlow nor h5py survives a fork. They do
not outlive whoever started them, also where that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from cnn.sweeps.journal import TrialResult
from cnn.sweeps.plan import Trial
from cnn.sweeps.worker_process import BROKEN, READY, STOPPED, Workplace, work
from embedcache.errors import TrainingError

MAX_ATTEMPTS = 2
"""A trial whose process dies is tried once more: memory may have been short for a moment."""
TRIALS_PER_WORKER = 32
"""After so many a process is replaced: TensorFlow keeps some 8 MB of every training (measured with
Keras's session cleared), and to begin anew takes five seconds."""
_END_TIMEOUT_S = 10.0

OnResult = Callable[[Trial, TrialResult], None]


@dataclass(slots=True)
class _Task:
    """A trial that is to be trained, and how often that was tried."""

    trial: Trial
    attempts: int = 0


@dataclass(slots=True)
class _Worker:
    """One process and what it is at."""

    process: Any
    connection: Connection
    task: _Task | None = None
    is_ready: bool = False
    num_trials: int = 0


@dataclass(slots=True)
class WorkerPool:
    """Runs trials on a few processes; for one use.

    Attributes:
        workplace: What every process is told.
        on_result: Called in this process for each trial that is done or has failed.
        target: What runs in each process; see `work`.
        trials_per_worker: After how many trials a process is replaced.
    """

    workplace: Workplace
    on_result: OnResult
    target: Callable[[Connection, Workplace], None] = work
    trials_per_worker: int = TRIALS_PER_WORKER
    _queue: deque[_Task] = field(default_factory=deque)
    _workers: list[_Worker] = field(default_factory=list)

    def run(self, trials: Sequence[Trial], *, jobs: int) -> None:
        """Train all of them, `jobs` at a time.

        Raises:
            TrainingError: if a process dies before it has begun.
            EmbedCacheError: what ends all trials alike: the store cannot be written, say.
            KeyboardInterrupt: on Ctrl-C; the processes are ended, and what they were at is lost.
        """
        self._queue.extend(map(_Task, trials))
        try:
            while self._queue or any(worker.task for worker in self._workers):
                self._hand_out(jobs)
                self._take_answers()
            self._dismiss(self._workers)
        finally:
            self._end_all()

    def _hand_out(self, jobs: int) -> None:
        """Give every free worker a trial, starting workers up to the number of jobs."""
        worn = [each for each in self._workers if self._is_worn(each)]
        self._dismiss(worn)
        for worker in worn:
            self._workers.remove(worker)
            _close(worker)
        for worker in self._workers:
            if worker.task is None and self._queue:
                self._give(worker, self._queue.popleft())
        while self._queue and len(self._workers) < jobs:
            worker = self._start_worker()
            self._workers.append(worker)
            self._give(worker, self._queue.popleft())

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self.target, args=(theirs, self.workplace), daemon=True)
        with _without_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, task: _Task) -> None:
        task.attempts += 1
        worker.task = task
        worker.num_trials += 1
        with suppress(OSError):  # It has died: its sentinel tells.
            worker.connection.send(task.trial)

    def _take_answers(self) -> None:
        """Wait until a worker answers or dies, and take what there is."""
        awaited: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        awaited |= {worker.process.sentinel: worker for worker in self._workers}
        answered = {id(awaited[ready]): awaited[ready] for ready in wait(list(awaited))}
        for worker in answered.values():
            try:
                # What it said before it died counts.
                has_answer = worker.connection.poll()
                answer = worker.connection.recv() if has_answer else None
            except (EOFError, OSError):
                answer = None
            if answer is not None:
                self._take_answer(worker, *answer)
            else:
                self._bury(worker)

    def _take_answer(self, worker: _Worker, kind: str, content: Any) -> None:
        if kind == READY:
            worker.is_ready = True
            return
        if kind == STOPPED:
            raise content
        task, worker.task = worker.task, None
        if task is None:
            return
        if kind == BROKEN:
            self._retry(task, content)
        else:
            self.on_result(task.trial, content)

    def _bury(self, worker: _Worker) -> None:
        """Put what a dead worker was at back, and forget the worker."""
        self._workers.remove(worker)
        worker.process.join()
        reason = _cause_of_death(worker.process.exitcode)
        _close(worker)
        if not worker.is_ready:
            raise TrainingError(
                f"a worker of the sweep {reason} before it could begin; look at the lines above,"
                " or start fewer at a time with --jobs 1, and go on with --resume"
            )
        if worker.task is not None:
            self._retry(worker.task, f"its process {reason}")

    def _retry(self, task: _Task, reason: str) -> None:
        """Try a trial again, or give it up."""
        if task.attempts < MAX_ATTEMPTS:
            self._queue.append(task)
        else:
            result = TrialResult.failed(task.trial.digest, f"{reason}, {MAX_ATTEMPTS} times")
            self.on_result(task.trial, result)

    def _is_worn(self, worker: _Worker) -> bool:
        return worker.task is None and worker.num_trials >= self.trials_per_worker

    def _dismiss(self, workers: Sequence[_Worker]) -> None:
        """Let workers go: they end by themselves, and are ended where they do not."""
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.process.join(_END_TIMEOUT_S)
            worker.process.kill()
            worker.process.join()

    def _end_all(self) -> None:
        """End what is still there. A kill loses nothing: a run is whole or not there."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            _close(worker)
        self._workers.clear()


def cores_of_process() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach.

    A terminal sends it to all of them, and each would print a traceback; it is for the one
    that they belong to to end them. What is blocked here stays blocked there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.close()


def _cause_of_death(exit_code: int) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        is_kill = -exit_code == signal.SIGKILL
        return f"was ended by {name}" + (" (out of memory?)" if is_kill else "")
    return f"ended with status {exit_code}"
