"""Worker processes: real children, killed, stopped and orphaned."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from embedcache.errors import CorpusError, EncodingError
from embedcache.service.errors import ServiceProblem
from embedcache.service.worker import WorkerFaultError, WorkerProcess
from tests.embedcache.service.serving import ROOT
from tests.embedcache.service.waiting import until

TARGETS = "tests.embedcache.service.worker_targets"


def run_with_desk(folder: Path, scenario: Callable[[WorkerProcess], Awaitable[None]]) -> None:
    """Run a scenario with a worker, which is ended at the end."""

    async def run() -> None:
        worker = WorkerProcess(f"{TARGETS}:open_desk", (str(folder),), name="desk's")
        try:
            await scenario(worker)
        finally:
            await worker.close()

    asyncio.run(run())


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_calls_are_answered_by_one_process_that_is_started_by_the_first(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        assert worker.pid is None
        assert await worker.call("echo", "one") == ("one", 1)
        assert await worker.call("echo", {"two": (2,)}) == ({"two": (2,)}, 2)
        assert await worker.call("pid") == worker.pid != os.getpid()

    run_with_desk(tmp_path, scenario)


def test_calls_at_once_get_their_own_answers(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        answers = await asyncio.gather(*(worker.call("echo", number) for number in range(50)))
        assert [value for value, _ in answers] == list(range(50))

    run_with_desk(tmp_path, scenario)


def test_messages_larger_than_any_buffer_go_both_ways(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        large = os.urandom(6 << 20)
        assert (await worker.call("echo", large))[0] == large

    run_with_desk(tmp_path, scenario)


def test_errors_of_the_child_are_raised_and_it_goes_on(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        with pytest.raises(CorpusError, match=r"^a known error$"):
            await worker.call("fail", "known")
        with pytest.raises(EncodingError, match=r"^a row is bad$"):
            await worker.call("fail", "of another shape")
        with pytest.raises(WorkerFaultError, match=r"^unexpected ValueError: an unknown error$"):
            await worker.call("fail", "unknown")
        assert (await worker.call("echo", 1))[1] == 1

    run_with_desk(tmp_path, scenario)


def test_a_cancelled_call_does_not_give_its_answer_to_the_next(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        await worker.call("echo", 0)
        slow = asyncio.create_task(worker.call("sleep", 0.2))
        await asyncio.sleep(0.05)
        slow.cancel()
        assert (await worker.call("echo", "mine"))[0] == "mine"

    run_with_desk(tmp_path, scenario)


@pytest.mark.parametrize("how", ["exits", "is killed"])
def test_a_child_that_dies_fails_the_call_in_flight_and_the_next_has_a_new_one(
    tmp_path: Path, how: str
) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        before = await worker.call("pid")
        method, argument = ("die", 7) if how == "exits" else ("sleep", 60)
        doomed = asyncio.create_task(worker.call(method, argument))
        waiting = asyncio.create_task(worker.call("pid"))
        if how == "is killed":
            await asyncio.sleep(0.1)
            os.kill(before, signal.SIGKILL)
        with pytest.raises(ServiceProblem) as caught:
            await doomed
        assert (caught.value.status, caught.value.code) == (503, "worker_died")
        assert ("status 7" if how == "exits" else "SIGKILL") in caught.value.message
        assert caught.value.headers["Retry-After"] == "1"
        assert await waiting == worker.pid != before

    run_with_desk(tmp_path, scenario)


def test_a_child_that_died_while_nothing_was_in_flight_is_not_noticed(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        before = await worker.call("pid")
        os.kill(before, signal.SIGKILL)
        await until(lambda: is_gone(before) and worker.pid is None)
        assert await worker.call("pid") not in (before, None)

    run_with_desk(tmp_path, scenario)


def test_a_child_that_cannot_start_is_a_problem_and_no_hanging(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = WorkerProcess(f"{TARGETS}:open_nothing", (str(tmp_path),), name="broken")
        for _ in range(2):
            with pytest.raises(ServiceProblem, match="the broken process ended with status 1"):
                await worker.call("echo", 1)
        await worker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_of_a_terminal_or_a_service_manager_are_the_servers_alone(
    tmp_path: Path, number: int
) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        pid = await worker.call("pid")
        slow = asyncio.create_task(worker.call("sleep", 0.2))
        await asyncio.sleep(0.05)
        os.kill(pid, number)
        assert await slow == "slept"
        assert await worker.call("pid") == pid

    run_with_desk(tmp_path, scenario)


def test_closing_lets_the_child_finish_and_no_call_comes_after(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        pid = await worker.call("pid")
        await worker.close()
        assert not psutil.pid_exists(pid)
        assert (tmp_path / "closed").exists()
        with pytest.raises(ServiceProblem, match="ending"):
            await worker.call("echo", 1)

    run_with_desk(tmp_path, scenario)


def test_a_child_that_is_stopped_is_killed_when_it_is_closed(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        pid = await worker.call("pid")
        os.kill(pid, signal.SIGSTOP)
        stuck = asyncio.create_task(worker.call("echo", 1))
        await asyncio.sleep(0.05)
        await worker.close(timeout_s=0.1)
        assert not psutil.pid_exists(pid)
        with pytest.raises(ServiceProblem):
            await stuck

    run_with_desk(tmp_path, scenario)


def test_closing_what_was_never_started_starts_nothing(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        await worker.close()
        assert worker.pid is None

    run_with_desk(tmp_path, scenario)


_SERVER = f"""
import asyncio, sys
from embedcache.service.worker import WorkerProcess

async def main():
    worker = WorkerProcess("{TARGETS}:open_desk", (sys.argv[1],), name="desk's")
    print(await worker.call("pid"), flush=True)
    await worker.call("say")
    await worker.call("sleep", float(sys.argv[2]))
    print("slept", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_a_child_ends_with_a_server_that_is_killed(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-c", _SERVER, str(tmp_path), str(seconds)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        pid = int(server.stdout.readline())
        if seconds:
            asyncio.run(until((tmp_path / "sleeping").exists))
        else:
            assert server.stdout.readline() == "slept\n"
        server.kill()
        asyncio.run(until(lambda: is_gone(pid)))
        # Nothing of what the child has said has come through.
        assert (server.stdout.read(), server.stderr.read()) == ("", "")
        # One that has nothing to do finishes; one that is busy is not waited for.
        assert (tmp_path / "closed").exists() == (seconds == 0.0)


def test_what_the_child_prints_is_shown_to_who_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(worker: WorkerProcess) -> None:
        await worker.call("say")

    monkeypatch.setenv("EMBEDCACHE_TRACEBACK", "1")
    run_with_desk(tmp_path, scenario)
    assert capfd.readouterr() == ("", "what nobody should see\n")
    monkeypatch.delenv("EMBEDCACHE_TRACEBACK")
    run_with_desk(tmp_path, scenario)
    assert capfd.readouterr() == ("", "")
