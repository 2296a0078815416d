"""What ``docs/service.md`` tells people to type works as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.service.settings import Limits, load_settings
from tests.embedcache.service import route_store
from tests.embedcache.service.serving import ROOT, ServerProcess, start_server

PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(b) for b in re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE)]
HERE = "http://127.0.0.1:8080"
TEXTS = ("the invoice was charged twice", "a text never seen", "another", "and one more")
PREDICTING = ":predict"
"""In the block that needs a run; `test_tf_serving` has one."""


def _blocks(word: str) -> list[str]:
    return [block for block in BLOCKS if word in block]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("doc") / "store"
    route_store.make_route_store(path, TEXTS)
    route_store.register(path, "helpdesk", TEXTS, labels=[("a",)] * 4, splits=[""] * 4)
    with start_server(path) as started:
        yield started


def test_commands_of_curl_are_answered(server: ServerProcess, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (block,) = _blocks("curl -s")
    commands = [line for line in re.split(r"\n(?=curl)", block.strip()) if PREDICTING not in line]
    assert len(commands) == 3
    answers = []
    for command in commands:
        command = command.replace(HERE, server.url)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True
        )
        answers.append(done.stdout)
    expected = route_store.matrix_of(TEXTS[0])
    (feature,) = json.loads(answers[0])["features"]
    np.testing.assert_allclose(feature["values"], expected, rtol=1e-3)
    np.testing.assert_allclose(json.loads(answers[1])[0], route_store.mean_of(TEXTS[0]), rtol=1e-3)
    with np.load(tmp_path / "features.npz") as arrays:
        np.testing.assert_array_equal(arrays["values"].astype(np.float32), expected)


@pytest.mark.parametrize("word", ["from openai", "InferenceClient", "embedcache.connect("])
def test_python_of_the_page_runs(server: ServerProcess, word: str) -> None:
    (block,) = _blocks(word)
    names: dict[str, Any] = {}
    exec(compile(block.replace(HERE, server.url), "service.md", "exec"), names)
    if "vector" in names:
        found = np.ravel(np.array(names["vector"]))
        np.testing.assert_allclose(found, route_store.mean_of(TEXTS[0]), rtol=1e-3)
    else:
        names["store"].close()
        np.testing.assert_array_equal(
            names["features"].values.astype(np.float32), route_store.matrix_of(TEXTS[0])
        )
        assert len(names["batch"].keys) == len(TEXTS)


def test_settings_of_the_page_are_those_there_are(tmp_path: Path) -> None:
    (block,) = _blocks("[limits]")
    path = tmp_path / "serve.toml"
    path.write_text(block, encoding="utf-8")
    settings = load_settings(path)
    assert settings.limits == Limits()
    assert settings.views == ("words=5d8af36dfd18",)
    assert tomllib.loads(block)["limits"]["max_texts"] == 32


def test_keys_of_the_page_are_a_key_file(tmp_path: Path) -> None:
    from embedcache.service.auth import load_keys

    path = tmp_path / "keys"
    path.write_text(_blocks("# KEY [scope,scope]")[0].split("\n\n")[0], encoding="utf-8")
    path.chmod(0o600)
    keys = load_keys(path)
    assert keys.scopes_of(b"Bearer 6a1f0c52b7d94e0f8a3b") == {"read"}
    assert keys.scopes_of(b"Bearer 17f3b8ae5d6c4b0c8e92") == {"read", "compute", "admin"}


def test_every_path_of_the_page_is_an_operation(server: ServerProcess) -> None:
    def shape(path: str) -> str:
        return re.sub(r"\{\w+\}", "{}", path)

    known = set(map(shape, json.loads(server.request("GET", "/openapi.json").body)["paths"]))
    told = set(map(shape, re.findall(r"`(?:GET |POST )?(/[a-z0-9_/{}:]+)", PAGE)))
    assert {"/v1/features", "/embed", "/v1/embeddings", "/v1/models/{}:predict", "/ready"} <= told
    assert told <= known
