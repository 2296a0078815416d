"""TensorFlow Serving's REST interface as its documentation calls it, against a started server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.embedcache.service import route_store
from tests.embedcache.service.route_store import MISSING
from tests.embedcache.service.serving import ROOT, ServerProcess, eventually, start_server

TEXTS = [f"{'good' if number % 2 else 'bad'} film number {number}" for number in range(40)]
LABELS = ["bad", "good"]
_TIMEOUT_S = 240

# Trains a run, and prints what it says of all texts by itself.
_TRAIN = """
import json, sys
import cnn, embedcache
texts = json.loads(sys.argv[2])
with embedcache.open_store(sys.argv[1]) as store:
    run = cnn.train(store, "verdicts", cnn.TrainConfig(preset="basic", epochs=2, seed=0))
    rows = [list(prediction.probabilities.values()) for prediction in run.predict(texts)]
    print(json.dumps({"run": run.name, "rows": rows}))
"""


@dataclass(frozen=True)
class Trained:
    """A store with a run, and the probabilities that the run gives `TEXTS`, (n, 2)."""

    path: Path
    run: str
    rows: Any


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    store = route_store.make_route_store(tmp_path_factory.mktemp("serving") / "store", TEXTS)
    splits = ["train"] * 24 + ["dev"] * 8 + ["test"] * 8
    labels = [(LABELS[number % 2],) for number in range(len(TEXTS))]
    route_store.register(store.path, "verdicts", TEXTS, labels=labels, splits=splits)
    # A process of its own: Keras is not for the tests' own process.
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(store.path), json.dumps(TEXTS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Trained(store.path, found["run"], np.array(found["rows"]))


@pytest.fixture(scope="module")
def server(trained: Trained, write_config: Callable[[str], Path]) -> Iterator[ServerProcess]:
    # The first prediction waits for Keras, which on a busy machine takes longer than 30 s.
    config = write_config(f"[limits]\ndeadline_s = {_TIMEOUT_S}\n")
    with start_server(trained.path, "--read-only", "--config", str(config)) as started:
        yield started


def _post(url: str, body: object) -> requests.Response:
    # As https://www.tensorflow.org/tfx/tutorials/serving/rest_simple does.
    headers = {"content-type": "application/json"}
    return requests.post(url, data=json.dumps(body), headers=headers, timeout=_TIMEOUT_S)


def test_instances_get_predictions_by_rows(server: ServerProcess, trained: Trained) -> None:
    url = f"{server.url}/v1/models/{trained.run}:predict"
    answer = _post(url, {"signature_name": "serving_default", "instances": TEXTS[:32]})
    np.testing.assert_allclose(answer.json()["predictions"], trained.rows[:32], atol=1e-5)


@pytest.mark.parametrize(
    "instances",
    [
        [{"text": TEXTS[0]}, {"text": TEXTS[1]}],
        [{"b64": base64.b64encode(text.encode()).decode()} for text in TEXTS[:2]],
        [{"text": {"b64": base64.b64encode(text.encode()).decode()}} for text in TEXTS[:2]],
    ],
    ids=["named", "base64", "named base64"],
)
def test_instances_may_be_named_and_encoded(
    server: ServerProcess, trained: Trained, instances: list[Any]
) -> None:
    answer = _post(f"{server.url}/v1/models/last:predict", {"instances": instances})
    np.testing.assert_allclose(answer.json()["predictions"], trained.rows[:2], atol=1e-5)


@pytest.mark.parametrize("inputs", [TEXTS[:3], {"text": TEXTS[:3]}], ids=["unnamed", "named"])
def test_inputs_get_outputs_by_columns(
    server: ServerProcess, trained: Trained, inputs: Any
) -> None:
    url = f"{server.url}/v1/models/{trained.run}/versions/1:predict"
    answer = _post(url, {"inputs": inputs})
    np.testing.assert_allclose(answer.json()["outputs"], trained.rows[:3], atol=1e-5)


def test_the_log_counts_the_texts_of_predictions(server: ServerProcess, trained: Trained) -> None:
    answer = _post(f"{server.url}/v1/models/{trained.run}:predict", {"instances": TEXTS[:3]})
    name = answer.headers["X-Request-ID"]
    lines = eventually(lambda: [x for x in server.log_lines() if x.get("request_id") == name])
    assert (lines[0]["texts"], lines[0]["hits"], lines[0]["misses"]) == (3, 3, 0)


def test_curl_sends_no_content_type_of_json_and_is_answered(
    server: ServerProcess, trained: Trained
) -> None:
    # curl -d '{"instances": …}' -X POST …, as TensorFlow Serving's documentation has it.
    answer = requests.post(
        f"{server.url}/v1/models/{trained.run}:predict",
        data=json.dumps({"instances": TEXTS[:1]}),
        headers={"content-type": "application/x-www-form-urlencoded"},
        timeout=_TIMEOUT_S,
    )
    np.testing.assert_allclose(answer.json()["predictions"], trained.rows[:1], atol=1e-5)


@pytest.mark.parametrize("suffix", ["", "/versions/1"])
def test_a_run_is_available(server: ServerProcess, trained: Trained, suffix: str) -> None:
    answer = requests.get(
        f"{server.url}/v1/models/{trained.run}{suffix}", timeout=_TIMEOUT_S
    ).json()
    status = {"error_code": "OK", "error_message": ""}
    assert answer == {
        "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]
    }


@pytest.mark.parametrize("suffix", ["", "/versions/1"])
def test_metadata_tells_the_signature_and_the_labels(
    server: ServerProcess, trained: Trained, suffix: str
) -> None:
    answer = requests.get(
        f"{server.url}/v1/models/{trained.run}{suffix}/metadata", timeout=_TIMEOUT_S
    ).json()
    assert answer["model_spec"]["name"] == trained.run
    assert answer["metadata"]["labels"] == LABELS
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["text"]["dtype"] == "DT_STRING"
    sizes = signature["outputs"]["probabilities"]["tensor_shape"]["dim"]
    assert [size["size"] for size in sizes] == ["-1", "2"]


def test_the_runs_are_listed_with_their_labels(server: ServerProcess, trained: Trained) -> None:
    runs = server.request("GET", "/v1/runs").json()["runs"]
    assert [run["run"] for run in runs] == [trained.run]
    assert runs[0]["labels"] == LABELS
    assert runs[0]["dataset"] == "verdicts"
    assert runs[0]["view"] == route_store.VIEW.fingerprint
    assert 0 <= runs[0]["test"]["accuracy"] <= 1


@pytest.mark.parametrize(
    "path", ["nothing:predict", "last/versions/2:predict", "nothing/versions/1:predict"]
)
def test_a_run_or_a_version_that_is_not_there_is_not_found(
    server: ServerProcess, path: str
) -> None:
    answer = _post(f"{server.url}/v1/models/{path}", {"instances": ["a"]})
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    "path", ["nothing/metadata", "last/versions/2", "last/versions/2/metadata"]
)
def test_what_is_asked_of_a_run_that_is_not_there_is_refused_in_the_same_form(
    server: ServerProcess, path: str
) -> None:
    answer = requests.get(f"{server.url}/v1/models/{path}", timeout=_TIMEOUT_S)
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)
    other = _post(f"{server.url}/v1/models/last:classify", {"examples": []})
    assert other.status_code == 405
    assert isinstance(other.json()["error"], str)


def test_a_text_that_is_not_stored_is_refused_by_a_server_that_computes_nothing(
    server: ServerProcess, trained: Trained
) -> None:
    url = f"{server.url}/v1/models/{trained.run}:predict"
    answer = _post(url, {"instances": [TEXTS[0], MISSING]})
    assert answer.status_code == 404
    assert "text 2" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": ["a"], "inputs": ["a"]},
        {"instances": []},
        {"instances": [1.0, 2.0]},
        {"instances": [{"words": "a"}]},
        {"instances": [{"text": "a", "more": 1}]},
        {"instances": [{"b64": "!"}]},
        {"instances": [{"b64": "gA=="}]},
        {"instances": [{"text": {"b64": {"b64": "YQ=="}}}]},
        {"inputs": {"words": ["a"]}},
        {"instances": ["a"], "signature_name": "other"},
        ["a"],
    ],
)
def test_a_body_that_is_no_request_is_refused(
    server: ServerProcess, trained: Trained, body: object
) -> None:
    answer = _post(f"{server.url}/v1/models/{trained.run}:predict", body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["error"], str)
