"""Leases: exclusive, gone with their holder, and never in the way of a build."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache
from embedcache.keys import Keys, keys_of_texts
from embedcache.store.leases import LeaseNames, WorkLeases

ROOT = Path(embedcache.__file__).parents[1]
TEXTS = [f"document {number}" for number in range(20_000)]
LARGEST = (1 << 62) - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases" / "view.lock"


@pytest.fixture
def one(path: Path) -> Iterator[WorkLeases]:
    leases = WorkLeases(path)
    yield leases
    leases.close()


@pytest.fixture
def two(path: Path) -> Iterator[WorkLeases]:
    leases = WorkLeases(path)
    yield leases
    leases.close()


@pytest.mark.parametrize("name", [0, 1, 12345, LARGEST])
def test_lease_is_refused_while_another_builder_has_it(
    one: WorkLeases, two: WorkLeases, name: int
) -> None:
    assert one.try_take(name)
    assert not two.try_take(name)
    one.release(name)
    assert two.try_take(name)
    assert not one.try_take(name)


def test_leases_of_other_names_are_granted(one: WorkLeases, two: WorkLeases) -> None:
    names = [7, 8, 9]
    assert all(one.try_take(name) for name in names)
    assert two.try_take(6)
    assert two.try_take(10)
    one.release(8)
    assert [two.try_take(name) for name in names] == [False, True, False]


def test_lease_taken_twice_is_given_up_by_two_releases(one: WorkLeases, two: WorkLeases) -> None:
    assert one.try_take(1)
    assert one.try_take(1)
    one.release(1)
    assert not two.try_take(1)
    one.release(1)
    assert two.try_take(1)


def test_closing_gives_up_all_and_may_be_done_twice(one: WorkLeases, two: WorkLeases) -> None:
    assert all(one.try_take(name) for name in range(100))
    one.close()
    one.close()
    assert all(two.try_take(name) for name in range(100))


def test_another_descriptor_of_the_file_may_be_closed(
    path: Path, one: WorkLeases, two: WorkLeases
) -> None:
    assert one.try_take(1)
    path.open("rb").close()
    third = WorkLeases(path)
    assert third.try_take(2)
    third.close()
    assert not two.try_take(1)


def test_constructing_leases_makes_no_file(path: Path, one: WorkLeases) -> None:
    assert not path.parent.exists()
    one.try_take(1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_bytes() == b""


def test_waiting_ends_when_the_lease_is_given_up(one: WorkLeases, two: WorkLeases) -> None:
    assert one.try_take(1)
    done = threading.Event()

    def wait() -> None:
        two.wait_for(1)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not done.wait(0.1)
    one.release(1)
    thread.join(timeout=60)
    assert done.is_set()
    assert not one.try_take(1)


def test_who_holds_a_lease_may_not_wait_for_another(one: WorkLeases, two: WorkLeases) -> None:
    assert one.try_take(1)
    with pytest.raises(RuntimeError, match="1 leases are held"):
        one.wait_for(2)
    assert two.try_take(2)


def test_signal_interrupts_the_waiting(one: WorkLeases, two: WorkLeases) -> None:
    assert one.try_take(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        # Again and again: one that came just before the waiting would be waited out.
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(KeyboardInterrupt):
            two.wait_for(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    one.release(1)
    assert one.try_take(1), "who was interrupted holds nothing"


def _start(code: str, path: Path) -> subprocess.Popen[str]:
    """A process that runs some code, with ``path`` and `WorkLeases` at hand."""
    first = "import fcntl, os, sys, pathlib\npath = pathlib.Path(sys.argv[1])\n"
    first += "from embedcache.store.leases import WorkLeases\n"
    return subprocess.Popen(
        [sys.executable, "-c", first + code, path], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


_HOLD = """
leases = WorkLeases(path)
print(leases.try_take(1), leases.try_take(2), flush=True)
sys.stdin.read()
"""


def test_lease_of_a_killed_process_is_free(path: Path, one: WorkLeases) -> None:
    with _start(_HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True True\n"
        assert not one.try_take(1)
        process.kill()
        one.wait_for(1)
    assert one.try_take(2)


_FORK = """
leases = WorkLeases(path)
leases.try_take(1)
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
leases.close()
print(WorkLeases(path).try_take(1), flush=True)
"""


def test_child_that_was_forked_keeps_no_lease_of_who_has_closed(path: Path) -> None:
    with _start(_FORK, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"


_HOLD_OF_PROCESS = "del fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW" + _HOLD


def test_locks_of_the_process_do_where_there_are_no_others(
    path: Path, one: WorkLeases, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("F_OFD_SETLK", "F_OFD_SETLKW"):
        monkeypatch.delattr(fcntl, name)
    with _start(_HOLD_OF_PROCESS, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True True\n"
        assert not one.try_take(1)
        assert one.try_take(3)
        one.release(3)
        process.kill()
        one.wait_for(1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_every_lease_is_granted_where_there_are_no_locks(
    one: WorkLeases, two: WorkLeases, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert one.try_take(1)
    assert two.try_take(1)
    two.release(1)
    two.wait_for(1)
    two.close()


def test_every_lease_is_granted_where_the_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one, two = (WorkLeases(tmp_path / "file" / "view.lock") for _ in range(2))
    assert one.try_take(1)
    assert two.try_take(1)
    one.close()


@given(st.lists(st.integers(0, 3000), max_size=8))
def test_names_do_not_depend_on_batches(cuts: list[int]) -> None:
    keys = keys_of_texts(TEXTS[:3000])
    whole = LeaseNames().next_names(keys)
    names = LeaseNames()
    ends = [0, *sorted(cuts), len(keys)]
    parts = [names.next_names(keys[a:b]) for a, b in itertools.pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_some_hundred_neighbours_share_a_lease() -> None:
    names = LeaseNames().next_names(keys_of_texts(TEXTS))
    num_leases = len(_runs(names))
    assert len(np.unique(names)) == num_leases
    assert 200 < len(TEXTS) / num_leases < 320
    assert names.min() >= 0
    assert names.max() <= LARGEST


def test_corpora_that_share_a_run_share_its_leases() -> None:
    names = LeaseNames().next_names(keys_of_texts(TEXTS))
    others = LeaseNames().next_names(keys_of_texts(["new", *TEXTS[1234:], "more"]))[1:-1]
    first_common = int(np.argmax(names[1234:] == others))
    assert first_common < 2000
    np.testing.assert_array_equal(names[1234:][first_common:], others[first_common:])


def test_common_text_does_not_name_all_leases() -> None:
    common = next(text for text in TEXTS if _first_byte(keys_of_texts([text])) == 0)
    often = [line for text in TEXTS for line in (text, common)]
    names = LeaseNames().next_names(keys_of_texts(often))
    assert len(_runs(names)) == len(_runs(LeaseNames().next_names(keys_of_texts(TEXTS))))


def test_corpora_that_begin_differently_have_different_first_leases() -> None:
    first = [int(LeaseNames().next_names(keys_of_texts([text]))[0]) for text in ("a", "b", "a")]
    assert first[0] == first[2] != first[1]


def test_no_documents_have_no_names() -> None:
    names = LeaseNames()
    assert len(names.next_names(keys_of_texts([]))) == 0
    assert len(names.next_names(keys_of_texts(["a"]))) == 1


def _runs(names: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.r_[True, names[1:] != names[:-1]])


def _first_byte(keys: Keys) -> int:
    return int(keys[0, 0])
