"""One step behind: order, errors, and who waits for whom."""

from __future__ import annotations

import threading

import pytest

from embedcache.compute.behind import OneBehind


def test_tasks_run_in_order_in_one_other_thread_and_are_waited_for() -> None:
    done: list[int] = []
    threads: set[int] = set()

    def task(number: int) -> None:
        threads.add(threading.get_ident())
        done.append(number)

    with OneBehind() as behind:
        for number in range(20):
            behind.submit(lambda number=number: task(number))
    assert done == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_caller_goes_on_while_a_task_runs() -> None:
    goes_on = threading.Event()
    with OneBehind() as behind:
        behind.submit(lambda: _require(goes_on.wait(timeout=30)))
        goes_on.set()


def _require(condition: bool) -> None:
    if not condition:
        raise TimeoutError("the caller waited for the task")


def _fail() -> None:
    raise ValueError("task")


def test_error_of_a_task_is_raised_at_the_next_one_which_does_not_run() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="task"), OneBehind() as behind:
        behind.submit(_fail)
        behind.submit(lambda: done.append(1))
    assert done == []


def test_error_of_the_last_task_is_raised_on_leaving() -> None:
    with pytest.raises(ValueError, match="task"), OneBehind() as behind:
        behind.submit(_fail)


def test_error_of_the_block_comes_first_and_waits_for_the_task() -> None:
    done: list[int] = []
    started = threading.Event()

    def task() -> None:
        started.wait(timeout=30)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), OneBehind() as behind:
        behind.submit(task)
        started.set()
        raise KeyboardInterrupt
    assert done == [1]
