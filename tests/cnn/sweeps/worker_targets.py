"""What runs in workers of the pool's tests instead of trainings: it answers, breaks or dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from cnn.sweeps.journal import TrialResult
from cnn.sweeps.plan import Trial
from cnn.sweeps.worker_process import BROKEN, DONE, READY, STOPPED, Workplace
from embedcache.errors import DiskFullError


def answer(connection: Connection, workplace: Workplace) -> None:
    """Answer every trial; the run's name is the process's number and its threads."""
    _serve(connection, lambda trial: None, workplace)


def die_at_first_try(connection: Connection, workplace: Workplace) -> None:
    """Die of every trial that was not tried before."""

    def die(trial: Trial) -> None:
        mark = Path(workplace.store) / trial.digest
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    _serve(connection, die, workplace)


def die_of_seed_1(connection: Connection, workplace: Workplace) -> None:
    """Die of the trial with seed 1, always."""

    def die(trial: Trial) -> None:
        if trial.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    _serve(connection, die, workplace)


def exit_at_once(connection: Connection, workplace: Workplace) -> None:
    """Never begin."""
    os._exit(7)


def break_down(connection: Connection, workplace: Workplace) -> None:
    """Answer that every trial broke."""
    connection.send((READY, None))
    _each(connection, lambda _trial: connection.send((BROKEN, "unexpected ValueError: no")))


def stop(connection: Connection, workplace: Workplace) -> None:
    """Answer what every other trial would meet too."""
    connection.send((READY, None))
    _each(connection, lambda _trial: connection.send((STOPPED, DiskFullError("no space"))))


def hang(connection: Connection, workplace: Workplace) -> None:
    """Take a trial and never answer; the store's folder gets the process's number."""
    connection.send((READY, None))
    connection.recv()
    (Path(workplace.store) / f"{os.getpid()}.pid").touch()
    signal.pause()


def _serve(connection: Connection, before: Callable[[Trial], None], workplace: Workplace) -> None:
    connection.send((READY, None))

    def reply(trial: Trial) -> None:
        before(trial)
        name = f"{os.getpid()}/{workplace.threads}"
        connection.send((DONE, TrialResult(trial.digest, name, {"accuracy": 1.0}, None, 0.0)))

    _each(connection, reply)


def _each(connection: Connection, take: Callable[[Trial], None]) -> None:
    while True:
        try:
            trial = connection.recv()
        except EOFError:
            return
        take(trial)
