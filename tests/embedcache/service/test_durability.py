"""kill -9 under load: what was acknowledged is stored, and is what the module gives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.maintain import verify_store
from tests.embedcache.service.conftest import STORED
from tests.embedcache.service.feature_service import open_fake_store, rows_of
from tests.embedcache.service.serving import ROOT, ServerProcess, start_server
from tests.embedcache.service.worker_targets import VIEW

NUM_CYCLES = 10
LONGEST_S = 0.1
"""After a few texts, until the kill: about what a batch takes."""


def _acknowledged_before_kill(path: Path, cycle: int, rng: random.Random, *bug: str) -> list[str]:
    """Run a server until it is killed, with its worker or without; what it has acknowledged."""
    command = [sys.executable, "-m", "tests.embedcache.service.acknowledging_server"]
    with subprocess.Popen(
        [*command, str(path), str(cycle), *bug],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stderr is not None
        first = server.stdout.readline().split()
        assert first[:1] == ["worker"], server.stderr.read()
        worker = int(first[1])
        lines = _read_some(server.stdout, rng)
        time.sleep(rng.uniform(0, LONGEST_S))
        victims = [[worker], [server.pid], [worker, server.pid]][cycle % 3]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if server.pid not in victims:
            # It goes on, with another worker; and is killed for good.
            lines += _read_some(server.stdout, rng)
            server.kill()
        lines += server.stdout.readlines()
        assert server.stderr.read() == ""
    psutil.wait_procs([each for each in psutil.process_iter() if each.pid == worker], timeout=30)
    # The last line may be torn.
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def _read_some(stream: IO[str], rng: random.Random) -> list[str]:
    return [stream.readline() for _ in range(rng.randint(5, 40))]


def _lost_or_wrong(store: FeatureStore, acknowledged: list[str]) -> list[str]:
    is_stored = store.contains(VIEW, acknowledged)
    lost = [text for text, stored in zip(acknowledged, is_stored, strict=True) if not stored]
    kept = [text for text, stored in zip(acknowledged, is_stored, strict=True) if stored]
    matrices = store.get(VIEW, kept)
    wrong = [
        text
        for text, matrix in zip(kept, matrices, strict=True)
        if matrix.tolist() != rows_of(text)
    ]
    return lost + wrong


def test_no_acknowledged_text_is_lost_by_kills_of_server_and_worker(tmp_path: Path) -> None:
    rng = random.Random(6)
    open_fake_store(tmp_path / "store", ["1 2 3"]).close()
    acknowledged: list[str] = []
    for cycle in range(NUM_CYCLES):
        acknowledged += _acknowledged_before_kill(tmp_path / "store", cycle, rng)
        with open_store(tmp_path / "store") as store:
            assert _lost_or_wrong(store, acknowledged) == []
            verified = verify_store(store)
            assert (verified.corrupt, verified.missing) == ([], [])
    assert len(acknowledged) >= 5 * NUM_CYCLES


def test_a_text_that_is_acknowledged_too_early_is_caught(tmp_path: Path) -> None:
    with open_fake_store(tmp_path / "store", ["1 2 3"]) as store:
        assert _lost_or_wrong(store, ["1 2 3"]) == []
    rng, lost = random.Random(6), []
    # Server and worker die each time; it may be between a commit and its acknowledgement.
    for cycle in range(2, 3 * NUM_CYCLES, 3):
        acknowledged = _acknowledged_before_kill(tmp_path / "store", cycle, rng, "early")
        with open_store(tmp_path / "store") as store:
            lost = _lost_or_wrong(store, acknowledged)
        if lost:
            break
    assert lost


# The same by HTTP, with the real module


def _features(server: ServerProcess, texts: list[str]) -> Any:
    return server.request("POST", "/v1/features", {"texts": texts})


def _worker_of(server: ServerProcess) -> psutil.Process:
    (worker,) = psutil.Process(server.pid).children()
    return worker


@pytest.fixture(scope="module")
def served(store_path: Path) -> Path:
    return store_path


def test_a_thousand_requests_for_one_missing_text_are_one_computation(served: Path) -> None:
    with start_server(served) as server:
        assert psutil.Process(server.pid).children() == []
        with ThreadPoolExecutor(100) as clients:
            answers = list(
                clients.map(lambda _: _features(server, ["a text nobody has seen"]), range(1000))
            )
        assert {answer.status for answer in answers} == {200}
        assert len({repr(answer.json()["features"]) for answer in answers}) == 1
        assert server.total("embedcache_computed_texts_total") == 1
        # It has computed, and yet not imported what computes.
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "tensorflow" not in maps
        assert "tensorflow" in Path(f"/proc/{_worker_of(server).pid}/maps").read_text()
        assert server.stop() == 0
    with start_server(served) as server:
        assert _features(server, ["a text nobody has seen"]).json()["hits"] == 1
        assert server.total("embedcache_computed_texts_total") == 0


def test_hits_start_no_worker_and_are_answered_while_it_is_stopped(served: Path) -> None:
    with start_server(served) as server:
        assert _features(server, list(STORED[:20])).json()["hits"] == 20
        assert psutil.Process(server.pid).children() == []
        assert _features(server, ["the worker begins"]).status == 200
        worker = _worker_of(server)
        worker.suspend()
        with ThreadPoolExecutor(1) as client:
            missing = client.submit(_features, server, ["the worker is stopped"])
            for _ in range(100):
                assert _features(server, list(STORED[:3])).json()["hits"] == 3
            assert not missing.done()
            worker.resume()
            assert missing.result().status == 200


def test_what_http_has_acknowledged_survives_kills(served: Path) -> None:
    acknowledged: dict[str, Any] = {}
    lock = threading.Lock()

    def ask(server: ServerProcess, cycle: int, client: int) -> None:
        for number in range(10_000):
            texts = [f"cycle {cycle} client {client} film {number}"]
            try:
                answer = _features(server, texts)
            except OSError:
                return
            if answer.status == 200:
                with lock:
                    acknowledged[texts[0]] = answer.json()["features"][0]["values"]
            else:
                assert answer.json()["error"]["code"] == "worker_died"

    for cycle in range(2):
        with start_server(served) as server:
            assert _features(server, [f"cycle {cycle} begins"]).status == 200
            with ThreadPoolExecutor(4) as clients:
                asking = [clients.submit(ask, server, cycle, client) for client in range(4)]
                time.sleep(1.0)
                before = _worker_of(server).pid
                if cycle == 0:
                    _worker_of(server).kill()
                    # Until the one after has answered somebody.
                    count = len(acknowledged)
                    while len(acknowledged) < count + 4:
                        time.sleep(0.05)
                    assert _worker_of(server).pid != before
                server.kill()
                for each in asking:
                    each.result()
    assert len(acknowledged) > 8
    with start_server(served, "--read-only") as server:
        for text, values in acknowledged.items():
            found = _features(server, [text])
            assert (found.status, found.json()["features"][0]["values"]) == (200, values)
    with open_store(served) as store:
        assert verify_store(store).corrupt == []
