"""The OpenAPI description against the started server: all that it says is so, and nothing is 5xx.

The server computes nothing: a text that schemathesis makes up would start TensorFlow, and the
suite would test for minutes how it starts. So that answers of status 200 are tested as well, texts
and names in valid requests are replaced by such as are stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.control import SkipTest
from schemathesis.transport.serialization import Binary

from embedcache.keys import key_of_text
from tests.embedcache.service import route_store
from tests.embedcache.service.conftest import KEYS
from tests.embedcache.service.route_store import DIM, SILENT_VIEW, TEXTS, VIEW
from tests.embedcache.service.serving import ServerProcess, start_server

EXAMPLES = 100
"""Of each operation, valid ones and invalid ones each."""

_HEADERS = {"Authorization": f"Bearer {KEYS['admin']}"}
_KNOWN = {
    "view": "films",
    "model": "films",
    "name": "films/small",
    "key": key_of_text(TEXTS[0]).hex(),
    "dimensions": DIM,
}
_TEXT_FIELDS = ("texts", "input", "inputs", "instances")

# What a schema cannot say: that bytes are keys of 16, that vectors have one width only, and that
# a text may be cut on one side only.
_SPARE = {"expected-statuses": ["2xx", "401", "403", "404", "406", "413", "422"]}
_REFUSED = ["401", "403", "404", "405", "406", "413", "422"]
_CONDITIONAL = (
    "/embed_all",
    "/embed",
    "/",
    "/v1/embeddings",
    "/v1/features/{view}/lookup",
    "/v1/features/{view}/gather",
)

_SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    # What fails is told at once: making it smaller takes minutes.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[ServerProcess]:
    store = route_store.make_route_store(tmp_path_factory.mktemp("openapi") / "store")
    options = ["--view", f"films={VIEW.fingerprint}", "--view", SILENT_VIEW.fingerprint]
    options += ["--read-only", "--api-key-file", str(key_file)]
    with start_server(store.path, *options) as started:
        yield started


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def _operations(server: ServerProcess, mode: GenerationMode) -> Iterator[Any]:
    config = SchemathesisConfig.from_dict(
        {
            "generation": {
                "mode": mode.value,
                "deterministic": True,
                "with-security-parameters": False,
            },
            # 413 besides: too many texts, or too large an answer.
            "checks": {"negative_data_rejection": {"expected-statuses": _REFUSED}},
            "operations": [
                {"include-path": path, "checks": {"positive_data_acceptance": _SPARE}}
                for path in _CONDITIONAL
            ],
        }
    )
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    for found in schema.get_all_operations():
        yield found.ok()


def _with_known_names(case: Any) -> None:
    """Put what is stored in the place of what was made up."""
    case.path_parameters = {
        name: _KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()
    }
    body = case.body
    if isinstance(body, Binary):
        case.body = Binary(b"".join(map(key_of_text, TEXTS[: len(body.data)])))
    if not isinstance(body, dict):
        return
    for name in _KNOWN.keys() & body.keys():
        body[name] = _KNOWN[name]
    for name in _TEXT_FIELDS:
        if isinstance(body.get(name), list):
            body[name] = [TEXTS[place % len(TEXTS)] for place in range(len(body[name]))]
        elif isinstance(body.get(name), str):
            body[name] = TEXTS[0]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_any_request_is_answered_as_described(
    server: ServerProcess, session: requests.Session, mode: GenerationMode
) -> None:
    statuses: dict[str, set[int]] = {}
    is_to_be_known = itertools.cycle((False, True))
    for operation in _operations(server, mode):

        @given(case=operation.as_strategy(generation_mode=mode))
        @_SETTINGS
        def send(case: Any) -> None:
            if mode is GenerationMode.POSITIVE and next(is_to_be_known):
                _with_known_names(case)
            answer = case.call_and_validate(session=session, headers=_HEADERS)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)

        try:
            send()
        except SkipTest:
            # Nothing can be wrong: it takes nothing, or any name, or any bytes.
            assert mode is GenerationMode.NEGATIVE
    if mode is GenerationMode.NEGATIVE:
        assert len(statuses) >= 7
        assert not any(200 in found for found in statuses.values())
    else:
        # There are no runs, which would bring Keras.
        unanswered = [name for name, found in statuses.items() if 200 not in found]
        assert all("{run}" in name for name in unanswered), unanswered
        assert len(statuses) - len(unanswered) >= 18


@pytest.fixture(scope="module")
def described(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", "/openapi.json").json()
    return found


def _described_operations(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_of_every_interface_is_described(described: dict[str, Any]) -> None:
    assert set(_described_operations(described)) == {
        "POST /v1/features",
        "GET /v1/features/{view}/{key}",
        "POST /v1/features/{view}/lookup",
        "POST /v1/features/{view}/gather",
        "GET /v1/views",
        "GET /v1/datasets",
        "GET /v1/datasets/{name}",
        "GET /v1/runs",
        "POST /v1/embeddings",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "POST /",
        "POST /embed",
        "POST /embed_all",
        "POST /tokenize",
        "GET /info",
        "POST /v1/models/{run}:predict",
        "POST /v1/models/{run}/versions/{version}:predict",
        "GET /v1/models/{run}/versions/{version}",
        "GET /v1/models/{run}/metadata",
        "GET /v1/models/{run}/versions/{version}/metadata",
        "GET /health",
        "GET /ready",
        "GET /metrics",
        "POST /v1/reload",
    }


def test_each_operation_tells_what_it_does_takes_and_answers(described: dict[str, Any]) -> None:
    for name, operation in _described_operations(described).items():
        assert operation["summary"], name
        assert operation["tags"], name
        assert operation["operationId"], name
        for status, answer in operation["responses"].items():
            assert answer["description"], (name, status)
            assert answer["content"], (name, status)
        if name.startswith("POST") and not name.endswith("reload"):
            content = operation["requestBody"]["content"]
            assert content, name
            assert {"401", "403", "408", "413", "415", "422", "504"} <= set(operation["responses"])


def test_texts_may_be_asked_for_with_a_key(described: dict[str, Any]) -> None:
    operation = described["paths"]["/v1/features"]["post"]
    (required,) = operation["security"]
    (scheme,) = required
    assert described["components"]["securitySchemes"][scheme]["scheme"] == "bearer"


def test_a_request_for_features_has_an_example(described: dict[str, Any]) -> None:
    schema = described["components"]["schemas"]["FeaturesRequest"]
    assert schema["examples"][0]["texts"]


def test_the_description_can_be_read_in_a_browser(server: ServerProcess) -> None:
    answer = server.request("GET", "/docs")
    assert answer.status == 200
    assert b"/openapi.json" in answer.body
