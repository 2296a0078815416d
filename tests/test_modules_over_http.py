"""Modules that a server hands out as archives, from inspect to predict."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine
from tests.embedcache.modules.hub_subjects import HubModules, shared_hub_modules
from tests.embedcache.modules.module_server import ModuleServer, serving

CORPUS = "".join(
    f"__label__{label} the film was {word} and {other} .\n"
    for label, words in {"good": ("good", "great", "fun"), "bad": ("bad", "awful", "dull")}.items()
    for word in words
    for other in ("the cat", "a house", "very long", "in one word", "too")
)


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


@pytest.mark.parametrize(
    "name", ["nnlm", "exporter-example", "use-large-signature", "bert", "elmo", "tf1-bert"]
)
def test_module_of_a_server_goes_all_the_way_and_is_fetched_once(
    name: str, hub: HubModules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDCACHE_MODULES", str(tmp_path / "modules"))
    ec, store, corpus = CommandLine(), tmp_path / "store", tmp_path / "films.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(hub.path(name)))]
        options = ["--module", f"{servers[0].url}/google/{name}/2"]
        if name == "bert":
            servers.append(stack.enter_context(serving(hub.preprocess(name))))
            options += ["--preprocess", f"{servers[1].url}/google/preprocess/3"]
        shown = ec.json(store, "modules", "inspect", options[1], *options[2:])
        assert shown["usable"]
        report = ec.json(store, "build", corpus, *options)
        assert (report["misses"], report["module"]) == (30, options[1])
        again = ec.json(store, "build", corpus, *options)
        assert (again["hits"], again["misses"]) == (30, 0)
        assert [_requested(server) for server in servers] == [1] * len(servers)
    record = ec.json(store, "get", "the film was good and too .")
    assert record["num_tokens"] == len(record["values"]) > 0
    run = ec.json(store, "train", "--preset", "basic", "--epochs", "2")
    assert run["view"] == report["view"]
    assert ec.json(store, "predict", "last", "the film was a great house")["predictions"]


def _requested(server: ModuleServer) -> int:
    """How often the archive was asked for, as TF Hub's protocol asks."""
    assert all("tf-hub-format=compressed" in path for path in server.requests)
    return len(server.requests)
