"""The client against the real server: computing, predicting, keys, and limits it must learn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.client.store import RemoteStore
from embedcache.errors import ServiceError, UnknownNameError
from embedcache.store.store import FeatureStore
from tests.embedcache.client.conftest import TEXTS
from tests.embedcache.service.serving import ROOT, ServerProcess, start_server
from tests.embedcache.store import programs

VIEW = programs.VIEW.fingerprint
READER, COMPUTER = "r" * 24, "c" * 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset of 60 texts of the module that embedcache brings, and a run."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [("good", "a fine warm film"), ("bad", "a cold dull bore"), ("good", "warm and fine")]
    lines = [f"{label}\t{text} {number}" for number in range(20) for label, text in rows]
    (folder / "mine.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n", encoding="utf-8")
    for arguments in (
        ["build", f"train={folder / 'mine.tsv'}", "--dataset", "mine"],
        ["train", "mine", "--preset", "basic", "--epochs", "2", "--dev-fraction", "0.2"],
    ):
        # Processes of their own: TensorFlow is not for the tests' own process.
        subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()",
             "--store", str(folder / "store"), *arguments],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
        )  # fmt: skip
    return folder / "store"


@pytest.fixture(scope="module")
def computing(trained: Path) -> Iterator[ServerProcess]:
    with start_server(trained, "--view", "words=" + _view_of(trained)) as started:
        yield started


@pytest.fixture(scope="module")
def strict(numbered_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with keys and narrow limits."""
    folder = tmp_path_factory.mktemp("strict")
    keys, config = folder / "keys", folder / "serve.toml"
    keys.touch(mode=0o600)
    keys.write_text(f"{READER} read\n{COMPUTER}\n", encoding="utf-8")
    limits = "[limits]\nmax_keys = 400\nmax_response_bytes = 4000\nmax_texts = 3\n"
    config.write_text(f'api_key_file = "keys"\n{limits}', encoding="utf-8")
    store = shutil.copytree(numbered_path, folder / "store")
    with start_server(store, "--config", str(config)) as started:
        yield started.url


def _view_of(path: Path) -> str:
    with embedcache.open_store(path) as store:
        return store.newest_view()


def test_new_texts_are_computed_once_by_whoever_asks_first(
    computing: ServerProcess, trained: Path
) -> None:
    texts = ["a warm film 3", "never seen before", "", *[f"new film {n}" for n in range(40)]]
    with embedcache.connect(computing.url, timeout_s=300) as remote:
        found = remote.embed("words", texts)
        assert remote.contains("words", texts).all()
    assert computing.total("embedcache_computed_texts_total") == len(texts)
    with embedcache.connect(computing.url, timeout_s=300) as other:
        again = other.embed("words", texts)
    assert computing.total("embedcache_computed_texts_total") == len(texts)
    with embedcache.open_store(trained) as store:
        expected = store.get(store.newest_view(), texts)
    for features in (found, again):
        np.testing.assert_array_equal(features.values, expected.values, strict=True)
        np.testing.assert_array_equal(features.row_splits, expected.row_splits, strict=True)


def test_a_run_predicts_labels_with_their_probabilities(computing: ServerProcess) -> None:
    texts = [f"a fine warm film {number}" for number in range(40)]
    with embedcache.connect(computing.url, timeout_s=300) as remote:
        (run,) = remote.runs()
        assert (run.dataset, run.labels) == ("mine", ("bad", "good"))
        predictions = remote.predict("last", texts)
        assert remote.predict(run.run[:-2], texts[:1])[0].label == predictions[0].label
        with pytest.raises(UnknownNameError, match=f"no run 'none'; there are: {run.run}"):
            remote.predict("none", texts)
        assert remote.predict("last", []) == []
    assert len(predictions) == 40
    for prediction in predictions:
        assert tuple(prediction.probabilities) == run.labels
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_trainer_elsewhere_reads_the_dataset(computing: ServerProcess, trained: Path) -> None:
    with (
        embedcache.connect(computing.url, timeout_s=60) as remote,
        embedcache.open_store(trained) as store,
    ):
        found, expected = (
            embedcache.FeatureStream(source, "mine", split="train") for source in (remote, store)
        )
        for epoch in range(2):
            for batch, other in zip(found.epoch(epoch), expected.epoch(epoch), strict=True):
                np.testing.assert_array_equal(batch.values, other.values, strict=True)
                np.testing.assert_array_equal(batch.labels, other.labels, strict=True)


def test_limits_that_are_narrower_than_usual_are_learnt(
    strict: str, numbered: FeatureStore
) -> None:
    with embedcache.connect(strict, api_key=READER) as remote:
        found, expected = remote.get(VIEW, TEXTS), numbered.get(VIEW, TEXTS)
        np.testing.assert_array_equal(found.values, expected.values, strict=True)


@pytest.mark.parametrize("key", [None, "x" * 24])
def test_a_service_with_keys_asks_for_one(strict: str, key: str | None) -> None:
    with (
        embedcache.connect(strict, api_key=key) as remote,
        pytest.raises(ServiceError, match=r"refused \(401 .*pass `api_key=…`") as caught,
    ):
        remote.get(VIEW, TEXTS[:3])
    assert str(caught.value).startswith(f"{strict}: ")
    assert "x" * 24 not in str(caught.value)


def test_a_key_that_may_not_compute_is_told_so(strict: str) -> None:
    with (
        embedcache.connect(strict, api_key=READER) as remote,
        pytest.raises(ServiceError, match=r"refused \(403 compute_scope\)") as caught,
    ):
        remote.embed(VIEW, ["never seen"])
    assert str(caught.value).isprintable()


def test_a_module_that_cannot_be_loaded_is_one_line(strict: str) -> None:
    with (
        embedcache.connect(strict, api_key=COMPUTER, timeout_s=120) as remote,
        pytest.raises(ServiceError, match=r"refused \(503 module_unavailable\)"),
    ):
        remote.embed(VIEW, [f"never seen {number}" for number in range(5)])


def test_a_store_that_is_asked_for_no_view_of_its_own_names_those_there_are(
    computing: ServerProcess,
) -> None:
    with embedcache.connect(computing.url) as remote:
        assert isinstance(remote, RemoteStore)
        with pytest.raises(UnknownNameError, match="no view 'letters'; there are: words"):
            remote.get("letters", ["a"])


def test_what_the_page_tells_people_to_type_works(
    computing: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, flags=re.MULTILINE)
    *typed, printed = map(textwrap.dedent, blocks)
    # The last one is what the one before prints.
    assert printed.strip().startswith("http://127.0.0.1:9: the service cannot be reached")
    monkeypatch.setenv("EMBEDCACHE_API_KEY", COMPUTER)
    names: dict[str, Any] = {}
    opened = []
    for block in typed:
        # The module is loaded at the first miss, which takes long on a busy machine.
        code = block.replace('127.0.0.1:8080")', '127.0.0.1:8080", timeout_s=300)')
        code = code.replace("http://127.0.0.1:8080", computing.url)
        exec(compile(code, "client.md", "exec"), names)
        opened.append(names["remote"])
    assert len(typed) == 6
    assert names["features"].lengths.tolist() == [5]
    assert names["prediction"].label in ("good", "bad")
    assert names["stream"].num_texts == 60
    for remote in opened:
        remote.close()


def test_every_file_that_the_page_links_to_is_there() -> None:
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", page)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
