"""Many builders at once, as real processes: each text is computed once, and nobody hangs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.compute.sequences import SequenceComputer
from embedcache.keys import keys_of_texts
from embedcache.precompute import BuildOptions
from embedcache.store.leases import LeaseNames
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.maintain import verify_store
from tests.embedcache import builders
from tests.embedcache.builders import VIEW, Settings
from tests.embedcache.compute.fakes import FakeSequenceEncoder

NUM_TEXTS = 12_000
TEXTS = [f"{number} {number % 7} 5" for number in range(NUM_TEXTS)]
PROGRAM = Path(builders.__file__)
ROOT = Path(embedcache.__file__).parents[1]


class Builder:
    """A builder in a process of its own, ready to begin."""

    def __init__(self, store: FeatureStore, corpus: Path | str, settings: Settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, store.path, corpus, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def begin(self, standard_input: bytes = b"") -> None:
        self.wait_until("ready")
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n" + standard_input)
        self._process.stdin.close()
        self._process.stdin = None

    def wait_until(self, state: str) -> int:
        """Wait until it says so; what it tells with it."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().decode().split()
        assert said[:1] == [state], (said, self.errors() if not said else "")
        return int(said[1]) if len(said) > 1 else 0

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()

    def status(self) -> int:
        self._process.communicate(timeout=120)
        return self._process.returncode

    def report(self) -> dict[str, Any]:
        """The report of a build that has come to its end."""
        output, errors = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, errors.decode()
        report: dict[str, Any] = json.loads(output.splitlines()[-1])
        assert report["hits"] + report["misses"] == report["unique"]
        return report

    def kill(self) -> None:
        """Kill it, if it is not dead, and forget it."""
        self._process.kill()
        self._process.communicate()


Start = Callable[..., Builder]


@pytest.fixture
def start(store: FeatureStore, tmp_path: Path) -> Iterator[Start]:
    started: list[Builder] = []

    def start_builder(corpus: Path | str, **settings: Any) -> Builder:
        started.append(Builder(store, corpus, Settings(**settings)))
        return started[-1]

    yield start_builder
    for builder in started:
        builder.kill()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return _write(tmp_path / "corpus.txt", TEXTS)


def _write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def _reports(*running: Builder) -> list[dict[str, Any]]:
    return [builder.report() for builder in running]


def _total_misses(reports: Sequence[dict[str, Any]]) -> int:
    return sum(report["misses"] for report in reports)


def _num_stored(store: FeatureStore) -> int:
    """Texts in all shards: one that was computed twice counts twice."""
    return sum(record.num_texts for record in store.catalog.shards(VIEW.fingerprint))


def _assert_whole(store: FeatureStore, texts: Sequence[str] = TEXTS) -> None:
    """Every text has its rows, and no shard is damaged."""
    features = store.get(VIEW, texts)
    encoder = FakeSequenceEncoder()
    expected = [encoder.content_rows([int(token) for token in text.split()]) for text in texts]
    np.testing.assert_array_equal(features.lengths, [len(rows) for rows in expected])
    np.testing.assert_array_equal(features.values, np.concatenate(expected))
    assert verify_store(store).is_well


def _run_together(start: Start, corpora: Sequence[Path | str], **settings: Any) -> list[Any]:
    running = [start(corpus, **settings) for corpus in corpora]
    for builder in running:
        builder.begin()
    return _reports(*running)


def test_three_builders_at_once_compute_each_text_once(
    store: FeatureStore, start: Start, corpus: Path
) -> None:
    # Slow: the last one begins long before one alone could have done all.
    reports = _run_together(start, [corpus] * 3, max_texts=1500, delay_s=0.01)
    assert _total_misses(reports) == _num_stored(store) == NUM_TEXTS
    assert max(report["misses"] for report in reports) < NUM_TEXTS, "the work was not shared"
    _assert_whole(store)


def test_leases_that_are_never_refused_are_caught(
    store: FeatureStore, start: Start, corpus: Path
) -> None:
    reports = _run_together(start, [corpus] * 3, bug=True)
    assert _total_misses(reports) > NUM_TEXTS
    # Nothing depends on a lease but the work.
    _assert_whole(store)


def test_repeated_texts_are_computed_twice_at_most_while_in_flight(
    store: FeatureStore, start: Start, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    drawn = [TEXTS[place] for place in rng.integers(0, 4000, NUM_TEXTS).tolist()]
    corpus = _write(tmp_path / "repeated.txt", drawn)
    reports = _run_together(start, [corpus] * 2)
    unique = len(set(drawn))
    assert {report["unique"] for report in reports} == {unique}
    assert unique <= _total_misses(reports) == _num_stored(store) < 2 * unique
    _assert_whole(store, sorted(set(drawn)))


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_what_a_dead_builder_was_at_is_computed_by_the_others(
    store: FeatureStore, start: Start, corpus: Path, tmp_path: Path, end: str
) -> None:
    gate = tmp_path / "gate"
    # It is held up in its third buffer; two are published, one shard a buffer.
    doomed = start(corpus, gate=str(gate), gate_after=50, max_texts=2048, fails=True)
    doomed.begin()
    doomed.wait_until("computing")
    stored = _num_stored(store)
    assert 0 < stored < NUM_TEXTS
    others = [start(corpus) for _ in range(2)]
    for other in others:
        other.begin()
    for other in others:
        other.wait_until("blocked")
    assert _num_stored(store) < NUM_TEXTS
    if end == "killed":
        doomed.send(signal.SIGKILL)
        assert doomed.status() == -signal.SIGKILL
    else:
        gate.touch()
        assert doomed.status() == 1
    reports = _reports(*others)
    assert _num_stored(store) == NUM_TEXTS
    # What it had computed and not published when it failed, it has published then.
    assert _total_misses(reports) <= NUM_TEXTS - stored
    _assert_whole(store)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_while_waiting_keeps_what_was_done(
    store: FeatureStore, start: Start, corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    slow = start(corpus, gate=str(gate))
    slow.begin()
    slow.wait_until("computing")
    waiting = start(corpus)
    waiting.begin()
    waiting.wait_until("blocked")
    computed = _num_stored(store)
    assert computed > 0
    waiting.send(number)
    assert waiting.status() == 130
    gate.touch()
    report = slow.report()
    assert report["hits"] == computed
    assert _num_stored(store) == NUM_TEXTS
    _assert_whole(store)


def test_late_builder_finds_what_is_published_and_does_what_nobody_is_at(
    store: FeatureStore, start: Start, corpus: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    early = start(corpus, gate=str(gate), gate_after=70, max_texts=2048)
    early.begin()
    early.wait_until("computing")
    published = _num_stored(store)
    assert published > NUM_TEXTS // 3
    late = start(corpus)
    late.begin()
    assert late.wait_until("blocked") == NUM_TEXTS, "it reads to the end before it waits"
    gate.touch()
    reports = _reports(early, late)
    assert _total_misses(reports) == _num_stored(store) == NUM_TEXTS
    assert 0 < reports[1]["misses"] < NUM_TEXTS - published
    _assert_whole(store)


def test_builder_with_nothing_left_to_compute_does_not_load_the_module(
    store: FeatureStore, start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    corpus = _write(tmp_path / "small.txt", TEXTS[:100])
    owner = start(corpus, gate=str(gate))
    owner.begin()
    owner.wait_until("computing")
    # Its module would be held up by a gate that never opens.
    other = start(corpus, gate=str(tmp_path / "never"))
    other.begin()
    other.wait_until("blocked")
    gate.touch()
    assert [report["misses"] for report in _reports(owner, other)] == [100, 0]


def test_memory_of_texts_put_aside_is_bounded(
    store: FeatureStore, start: Start, corpus: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    slow = start(corpus, gate=str(gate))
    slow.begin()
    slow.wait_until("computing")
    bounded = start(corpus, aside_bytes=1000 * 300)
    bounded.begin()
    assert bounded.wait_until("blocked") < NUM_TEXTS
    gate.touch()
    reports = _reports(slow, bounded)
    assert _total_misses(reports) == _num_stored(store) == NUM_TEXTS
    _assert_whole(store)


def test_corpora_that_overlap_share_the_work_on_what_they_have_in_common(
    store: FeatureStore, start: Start, tmp_path: Path
) -> None:
    one = _write(tmp_path / "one.txt", TEXTS[:10_000])
    two = _write(tmp_path / "two.txt", TEXTS[500:])
    reports = _run_together(start, [one, two])
    names = LeaseNames().next_names(keys_of_texts(TEXTS[500:]))
    # Until the first anchor the two do not know of each other.
    num_strange = int(np.count_nonzero(names == names[0]))
    assert num_strange < 2000
    assert NUM_TEXTS <= _total_misses(reports) <= NUM_TEXTS + num_strange
    _assert_whole(store)


def test_standard_input_shares_its_work_too(
    store: FeatureStore, start: Start, corpus: Path
) -> None:
    running = [start(corpus), start("-")]
    running[0].begin()
    running[1].begin(corpus.read_bytes())
    reports = _reports(*running)
    assert _total_misses(reports) == _num_stored(store) == NUM_TEXTS
    assert {report["version"] for report in reports} == {reports[0]["version"]}


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceComputer, "buffer_texts", 2048)


def _build_in_threads(store: FeatureStore, corpus: Path) -> list[embedcache.BuildReport]:
    options = BuildOptions(batch_tokens=builders.BATCH_TOKENS)

    def build(_number: int) -> embedcache.BuildReport:
        with embedcache.open_store(store.path) as own:
            return embedcache.build(own, corpus, options=options)

    with builders.module_of_numpy(Settings()), ThreadPoolExecutor(2) as threads:
        return list(threads.map(build, range(2)))


@pytest.mark.usefixtures("small_buffers")
def test_two_builds_in_threads_of_one_process_share_the_work(
    store: FeatureStore, corpus: Path
) -> None:
    reports = _build_in_threads(store, corpus)
    assert sum(report.misses for report in reports) == _num_stored(store) == NUM_TEXTS
    _assert_whole(store)


@pytest.mark.usefixtures("small_buffers")
def test_file_system_without_locks_costs_work_only(
    store: FeatureStore, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    reports = _build_in_threads(store, corpus)
    assert all(report.hits + report.misses == NUM_TEXTS for report in reports)
    assert sum(report.misses for report in reports) >= NUM_TEXTS
    _assert_whole(store)
