"""Predictions of real runs, in a worker's process that loads no module."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import EmbedCacheError
from embedcache.service.errors import ServiceProblem, problem_of
from embedcache.service.features import FeatureService
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.predicting import PredictionService, RunPrediction
from embedcache.service.settings import ServiceSettings
from embedcache.store.store import open_store
from tests.backends import backend_path
from tests.embedcache.service.serving import ROOT
from tests.embedcache.service.waiting import until

PREDICTOR = "cnn.serving:open_predictor"
TEXTS = tuple(f"a {word} film number {number}" for number in range(8) for word in ("good", "bad"))
NEVER_SEEN = "a good film that nobody has seen"


@dataclass(frozen=True)
class Trained:
    """A store with runs.

    Attributes:
        store: Its path.
        runs: Names of two, the older first.
        said: What the command line says the newer one predicts of `TEXTS`.
    """

    store: Path
    runs: tuple[str, str]
    said: list[dict[str, Any]]


def _embedcache(store: Path, *arguments: str) -> Any:
    """Run a command in a process of its own: TensorFlow is not for the tests' own one."""
    script = "from cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--store", str(store), *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    corpus = folder / "films.tsv"
    rows = [f"{text}\t{'good' if 'good' in text else 'bad'}\n" for text in TEXTS]
    corpus.write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    _embedcache(folder / "store", "build", str(corpus), "--dataset", "films")
    options = ("--epochs", "2", "--filters", "4", "--kernel-sizes", "2", "--dev-fraction", "0.25")
    runs = tuple(
        _embedcache(folder / "store", "train", "films", *options, "--seed", seed)["run"]
        for seed in ("1", "2")
    )
    said = _embedcache(folder / "store", "predict", runs[1], *TEXTS)["predictions"]
    return Trained(folder / "store", (runs[0], runs[1]), said)


@pytest.fixture
def own(trained: Trained, tmp_path: Path) -> Trained:
    """A copy that a test may change."""
    store = Path(shutil.copytree(trained.store, tmp_path / "store"))
    return Trained(store, trained.runs, trained.said)


@dataclass(frozen=True)
class Bench:
    """The two services of a store."""

    features: FeatureService
    predictions: PredictionService

    async def predict(
        self, run: str, *texts: str, seconds: float = 120.0, may_compute: bool = True
    ) -> list[RunPrediction]:
        return await self.predictions.predict(
            self.predictions.find_run(run),
            texts,
            may_compute=may_compute,
            deadline=time.monotonic() + seconds,
        )

    async def status(self, run: str, *texts: str, **options: Any) -> tuple[int, str]:
        try:
            await self.predict(run, *texts, **options)
        except EmbedCacheError as error:
            problem = problem_of(error)
            return problem.status, problem.code
        return 200, ""


@asynccontextmanager
async def _bench_of(path: Path, settings: ServiceSettings) -> AsyncIterator[Bench]:
    with open_store(path) as store:
        async with (
            FeatureService(store, settings, ServiceMetrics()) as features,
            PredictionService(store, settings, features) as predictions,
        ):
            yield Bench(features, predictions)


def run_with_services(
    path: Path, scenario: Callable[[Bench], Awaitable[None]], **settings: Any
) -> None:
    """Run a scenario with both services of a store."""
    given = ServiceSettings(**{"predictor": PREDICTOR, **settings})

    async def run() -> None:
        async with _bench_of(path, given) as bench:
            await scenario(bench)

    asyncio.run(run())


def _maps_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_run_says_what_the_command_says_and_one_process_serves_all_runs(
    trained: Trained,
) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.predictions.worker_pid is None
        found = await bench.predict(trained.runs[1], *TEXTS)
        for prediction, said in zip(found, trained.said, strict=True):
            assert prediction.label == said["label"]
            assert prediction.labels == (said["label"],)
            assert list(prediction.probabilities) == ["bad", "good"]
            assert dict(prediction.probabilities) == pytest.approx(said["probabilities"], abs=1e-5)
        pid = bench.predictions.worker_pid
        other = await bench.predict(trained.runs[0], TEXTS[0])
        assert other[0].probabilities != found[0].probabilities
        assert bench.predictions.worker_pid == pid
        # All were stored: the other worker, which loads modules, was not needed.
        assert bench.features.worker_pid is None
        assert "tensorflow" not in _maps_of(os.getpid()) or "tensorflow" in sys.modules

    run_with_services(trained.store, scenario)


def test_a_text_that_is_not_stored_is_computed_before(own: Trained) -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.status("last", NEVER_SEEN, may_compute=False) == (403, "compute_scope")
        assert bench.predictions.worker_pid is None
        found = await bench.predict("last", NEVER_SEEN, TEXTS[0])
        assert len(found) == 2
        assert await bench.status("last", NEVER_SEEN, may_compute=False) == (200, "")

    run_with_services(own.store, scenario)


def test_runs_are_found_by_name_beginning_and_last(trained: Trained) -> None:
    async def scenario(bench: Bench) -> None:
        find = bench.predictions.find_run
        assert [run.run for run in bench.predictions.runs] == list(trained.runs)
        assert find("last").run == find(trained.runs[1]).run == trained.runs[1]
        assert find(trained.runs[0]).labels == ("bad", "good")
        assert find(trained.runs[0]).record.dataset == "films"
        for name in ("2", "", "nothing"):
            with pytest.raises(ServiceProblem, match=trained.runs[0]) as caught:
                find(name)
            assert (caught.value.status, caught.value.code) == (404, "unknown_run")

    run_with_services(trained.store, scenario)


def test_runs_that_are_named_predict_alone(trained: Trained) -> None:
    async def scenario(bench: Bench) -> None:
        assert [run.run for run in bench.predictions.runs] == [trained.runs[0]]
        assert bench.predictions.find_run("last").run == trained.runs[0]
        with pytest.raises(ServiceProblem):
            bench.predictions.find_run(trained.runs[1])

    run_with_services(trained.store, scenario, runs=(trained.runs[0],))


def test_without_a_predictor_there_are_no_runs(trained: Trained) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.predictions.runs == ()
        with pytest.raises(ServiceProblem, match="none"):
            bench.predictions.find_run("last")

    run_with_services(trained.store, scenario, predictor=None)


def test_a_run_that_comes_or_goes_is_seen(own: Trained) -> None:
    async def scenario(bench: Bench) -> None:
        with open_store(own.store) as other:
            (record,) = [each for each in other.catalog.runs() if each.run == own.runs[0]]
            other.catalog.remove_run(record.run)
            await until(lambda: [run.run for run in bench.predictions.runs] == [own.runs[1]])
            other.catalog.add_run(record)
        await until(lambda: len(bench.predictions.runs) == 2)
        # One whose files are gone cannot predict, and is not listed.
        shutil.rmtree(own.store / "runs" / own.runs[0])

    run_with_services(own.store, scenario)

    async def after(bench: Bench) -> None:
        assert [run.run for run in bench.predictions.runs] == [own.runs[1]]

    run_with_services(own.store, after)


def test_a_damaged_model_and_a_dead_worker_are_told_and_the_next_request_is_fine(
    own: Trained,
) -> None:
    model = own.store / "runs" / own.runs[1] / "model.keras"
    content = model.read_bytes()

    async def scenario(bench: Bench) -> None:
        model.write_bytes(content[:-1])
        assert await bench.status("last", TEXTS[0]) == (503, "run_unavailable")
        model.write_bytes(content)
        assert await bench.status("last", TEXTS[0]) == (200, "")
        pid = bench.predictions.worker_pid
        assert pid is not None
        os.kill(pid, 19)  # SIGSTOP
        assert await bench.status("last", TEXTS[0], seconds=0.2) == (504, "deadline")
        asked = asyncio.create_task(bench.status("last", TEXTS[0]))
        await asyncio.sleep(0.1)
        os.kill(pid, 9)
        assert await asked in [(503, "worker_died"), (200, "")]
        assert await bench.status("last", TEXTS[0]) == (200, "")
        assert bench.predictions.worker_pid not in (pid, None)

    run_with_services(own.store, scenario)


@pytest.mark.skipif(backend_path("jax") is None, reason="JAX is not installed")
def test_with_another_backend_tensorflow_is_not_imported(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for folder in str(backend_path("jax")).split(os.pathsep)[1:]:
        monkeypatch.syspath_prepend(folder)

    async def scenario(bench: Bench) -> None:
        found = await bench.predict(trained.runs[1], *TEXTS)
        for prediction, said in zip(found, trained.said, strict=True):
            assert dict(prediction.probabilities) == pytest.approx(said["probabilities"], abs=1e-4)
        maps = _maps_of(bench.predictions.worker_pid)
        assert "jax" in maps
        assert "tensorflow" not in maps

    run_with_services(trained.store, scenario)
