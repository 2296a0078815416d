"""The whole way, by commands, with a module of every kind that TF Hub has for text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.conftest import CommandLine, Processes
from tests.embedcache.modules.hub_subjects import HubModules, names_of, shared_hub_modules
from tests.hub_modules import bert_encoder
from tests.hub_modules.bag_of_words import expected_rows
from tests.hub_modules.elmo import expected_elmo
from tests.hub_modules.transformer import TransformerRecipe, expected_layers
from tests.hub_modules.vocabulary import piece_ids, text_piece_ids

# One of each row of the table of kinds: its name, the kind, and the width of a row.
KINDS = {
    "exporter-example": ("bag-of-words", 8),
    "use": ("sentence-encoder", 16),
    "bert": ("preprocessed-encoder", 8),
    "elmo-like": ("elmo", 12),
    "tf1-bert": ("tf1-bert", 8),
}
ENCODERS = names_of("preprocessed-encoder", "tf1-bert")
RECIPES = {"albert": bert_encoder.ALBERT, "electra": bert_encoder.ELECTRA}
OTHERS = [name for name in names_of() if name not in KINDS]
LABELS = ("good", "bad")
_WORDS = {"good": ("good", "great", "best", "fun"), "bad": ("bad", "awful", "boring", "worst")}
_ENDINGS = ("", " and the plot too .", ", very long. The acting was not!", " in one word")
LONG = " ".join(["of to in"] * 80)
ROUNDING = 2e-3  # float16, of rows of up to some 4

Build = Callable[..., dict[str, Any]]


def corpus_texts() -> dict[str, str]:
    """Forty texts with their labels."""
    return {
        f"the film was a {word} movie{' for the cat' * number}{ending}": label
        for label, words in _WORDS.items()
        for place, word in enumerate(words)
        for number, ending in enumerate((*_ENDINGS, " house" * place))
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "films.txt"
    lines = [f"__label__{label} {text}\n" for text, label in corpus_texts().items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def ec() -> CommandLine:
    return CommandLine()


class Flow:
    """A store for each kind, in which the corpus was built by a command."""

    def __init__(self, ec: CommandLine, hub: HubModules, corpus: Path, folder: Path) -> None:
        self._ec, self._hub, self._corpus, self._folder = ec, hub, corpus, folder
        self._reports: dict[str, dict[str, Any]] = {}

    def store(self, name: str) -> Path:
        """The store, with the corpus in it."""
        self.report(name)
        return self._folder / name

    def report(self, name: str) -> dict[str, Any]:
        """What the build said."""
        if name not in self._reports:
            arguments = self.arguments(name)
            self._reports[name] = self._ec.json(self._folder / name, *arguments)
        return self._reports[name]

    def arguments(self, name: str) -> list[str]:
        """The build's command line."""
        return ["build", str(self._corpus), *self._hub.arguments(name)]


@pytest.fixture(scope="module")
def flow(
    ec: CommandLine, hub: HubModules, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Flow:
    return Flow(ec, hub, corpus, tmp_path_factory.mktemp("flow"))


@pytest.fixture
def build(ec: CommandLine, hub: HubModules, tmp_path: Path) -> Build:
    """Builds texts with a module and options into the store that all these tests share."""

    def run(name: str, texts: list[str], *options: str) -> dict[str, Any]:
        file = tmp_path / "texts.txt"
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        arguments = ("--format", "txt", "--dtype", "float32", *hub.arguments(name), *options)
        return ec.json(hub.store_path, "build", file, *arguments)

    return run


@pytest.fixture
def rows_of(ec: CommandLine, hub: HubModules) -> Callable[[dict[str, Any], str], NDArray[Any]]:
    """The rows of a text under the view of a build."""

    def get(report: dict[str, Any], text: str) -> NDArray[Any]:
        record = ec.json(hub.store_path, "get", text, "--view", report["view"])
        rows = np.array(record["values"], np.float32).reshape(-1, record["dim"])
        assert (record["num_tokens"], record["view"]) == (len(rows), report["view"])
        return rows

    return get


def layers_of(
    text: str,
    *,
    recipe: TransformerRecipe | None = None,
    lower_case: bool = True,
    special: bool = False,
) -> list[NDArray[Any]]:
    """The rows of a tiny BERT's layers, in NumPy."""
    own = text_piece_ids(text, lower_case=lower_case)
    ids = [*piece_ids(["[CLS]"]), *own, *piece_ids(["[SEP]"])]
    kept = slice(None) if special else slice(1, -1)
    return [rows[kept] for rows in expected_layers(ids, recipe=recipe)]


@pytest.mark.parametrize("name", KINDS)
def test_module_is_shown_built_trained_on_and_predicted_with(
    name: str, ec: CommandLine, hub: HubModules, flow: Flow
) -> None:
    kind, dim = KINDS[name]
    store, report, texts = flow.store(name), flow.report(name), corpus_texts()
    _, path, *preprocess = hub.arguments(name)
    shown = ec.json(store, "modules", "inspect", path, *preprocess)
    assert (shown["kind"], shown["usable"], shown["row_dim"]) == (kind, True, dim)
    assert shown["pin_agrees"]

    assert (report["texts"], report["misses"], report["hits"]) == (40, 40, 0)
    assert report["truncated"] == report["windowed"] == 0
    assert report["fidelity"]["texts"] > 0
    assert report["fidelity"]["max_difference"] < ROUNDING

    text = next(iter(texts))
    got = ec.json(store, "get", text)
    assert (got["view"], got["dim"], got["dtype"]) == (report["view"], dim, "float16")
    assert np.array(got["values"]).shape == (got["num_tokens"], dim)
    assert got["num_tokens"] == (1 if name == "use" else len(text.split()))

    run = ec.json(store, "train", "--preset", "basic", "--epochs", "2")
    assert (run["view"], run["epochs"]) == (report["view"], 2)
    assert 0 <= run["dev"]["accuracy"] <= 1
    assert np.isfinite(run["dev"]["loss"])

    told = ec.json(store, "predict", "last", text, "a film that was never seen")["predictions"]
    assert [prediction["label"] in LABELS for prediction in told] == [True, True]
    assert ec.json(store, "get", "a film that was never seen")["dim"] == dim


def test_second_build_of_each_kind_computes_nothing_and_leaves_tensorflow_alone(
    flow: Flow,
) -> None:
    script = """if True:
        import json, sys
        from cli.main import run
        for arguments in json.load(sys.stdin):
            assert run([*arguments, "--json"]) == 0
        print(json.dumps(sorted({"tensorflow", "keras"} & set(sys.modules))))
    """
    lines = [["--store", str(flow.store(name)), *flow.arguments(name)] for name in KINDS]
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(lines), text=True, check=True,
        capture_output=True, timeout=120, env=Processes().environment(),
    )  # fmt: skip
    *reports, loaded = map(json.loads, done.stdout.splitlines())
    assert loaded == []
    for name, report in zip(KINDS, reports, strict=True):
        assert (report["hits"], report["misses"], report["shards"]) == (40, 0, 0)
        for field in ("view", "version"):
            assert report[field] == flow.report(name)[field]
        assert report["fidelity"]["texts"] > 0


def test_rows_of_the_exporter_example_are_those_of_its_table(ec: CommandLine, flow: Flow) -> None:
    store = flow.store("exporter-example")
    for text in corpus_texts():
        words = [word.strip(".,!?") for word in text.split(" ")]
        rows = ec.json(store, "get", text)["values"]
        expected = expected_rows(words, zero_oov=True)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING, err_msg=text)


def test_rows_of_a_module_like_elmo_are_those_of_its_network(ec: CommandLine, flow: Flow) -> None:
    store = flow.store("elmo-like")
    for text in corpus_texts():
        rows = ec.json(store, "get", text)["values"]
        expected = expected_elmo(text.split(" "), dim=12, seed=1)["elmo"]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING, err_msg=text)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_module_is_built_and_got(name: str, build: Build, rows_of: Any) -> None:
    texts = ["the cat sat", "a good film , and not a long one ."]
    report = build(name, texts)
    assert report["misses"] == 2
    assert report["fidelity"]["texts"] > 0
    assert report["fidelity"]["max_difference"] < 1e-5
    rows = [rows_of(report, text) for text in texts]
    if name in ENCODERS:
        recipe = RECIPES.get(name, TransformerRecipe())
        for text, matrix in zip(texts, rows, strict=True):
            expected = layers_of(text, recipe=recipe, lower_case=name != "bert-cased")[-1]
            np.testing.assert_allclose(matrix, expected, rtol=0, atol=2e-4, err_msg=text)
    assert report["tokens"] == len(rows[0]) + len(rows[1])
    assert np.abs(rows[0][0] - rows[1][0]).max() > 1e-3
    assert build(name, texts)["misses"] == 0


def test_sentence_encoder_gives_rows_of_sentences_windows_or_words(
    build: Build, rows_of: Any
) -> None:
    text = "The film was good. The plot was not!"
    reports = {
        granularity: build("use", [text, "good"], "--granularity", granularity)
        for granularity in ("sentence", "window", "token")
    }
    assert len({report["view"] for report in reports.values()}) == 3
    rows = {granularity: rows_of(report, text) for granularity, report in reports.items()}
    assert [len(matrix) for matrix in rows.values()] == [2, 10, 10]
    # A word alone is its own token; a text of one word is its own sentence and window.
    np.testing.assert_allclose(
        rows["token"][3], rows_of(reports["sentence"], "good")[0], rtol=0, atol=1e-6
    )
    assert np.abs(rows["window"][3] - rows["token"][3]).max() > 0.01
    wider = build("use", [text], "--granularity", "window", "--context-words", "9")
    whole = rows_of(wider, text)
    np.testing.assert_allclose(whole, np.tile(whole[0], (10, 1)), rtol=0, atol=1e-6)
    narrow = build("use", [text], "--granularity", "window", "--context-words", "0")
    np.testing.assert_allclose(rows_of(narrow, text), rows["token"], rtol=0, atol=1e-6)


def test_layers_of_an_encoder_are_its_own(build: Build, rows_of: Any) -> None:
    text = "the cat sat on the mat"
    first, second = layers_of(text)
    expected = {
        "1": first,
        "2,1": np.concatenate([second, first], axis=1),
        "mean": (first + second) / 2,
        "all": np.concatenate([first, second], axis=1),
        "-1": second,
    }
    reports = {}
    for layer, rows in expected.items():
        reports[layer] = build("bert", [text], "--layer", layer)
        np.testing.assert_allclose(
            rows_of(reports[layer], text), rows, rtol=0, atol=5e-5, err_msg=layer
        )
    assert len({report["view"] for report in reports.values()}) == len(expected)
    assert build("bert", [text], "--layer", "2")["view"] == reports["-1"]["view"]


def test_layers_of_elmo_are_its_own(build: Build, rows_of: Any) -> None:
    text = "the cat sat on the mat"
    rows = expected_elmo(text.split())
    below = [rows["word_emb"], rows["lstm_outputs1"], rows["lstm_outputs2"]]
    # Word rows are half as wide as the others: they are repeated, as in ELMo's own mix.
    equal = [np.tile(below[0], (1, 2)), *below[1:]]
    expected = {
        "word_emb": below[0],
        "lstm_outputs2,word_emb": np.concatenate([below[2], below[0]], axis=1),
        "-1": below[2],
        "mean": sum(equal) / 3,
        "all": np.concatenate(equal, axis=1),
        "elmo": rows["elmo"],
    }
    for layer, matrix in expected.items():
        report = build("elmo", [text], "--layer", layer)
        np.testing.assert_allclose(rows_of(report, text), matrix, rtol=0, atol=2e-5, err_msg=layer)


def test_special_tokens_are_kept_if_asked_for(build: Build, rows_of: Any) -> None:
    text = "the dog"
    report = build("tf1-bert", [text, ""], "--keep-special-tokens")
    expected = layers_of(text, special=True)[-1]
    np.testing.assert_allclose(rows_of(report, text), expected, rtol=0, atol=5e-5)
    assert len(rows_of(report, "")) == 2


def test_long_text_is_cut_or_stitched_of_windows(build: Build, rows_of: Any) -> None:
    cut = build("bert", [LONG])
    assert (cut["truncated"], cut["windowed"], cut["tokens"]) == (1, 0, 158)
    stitched = build("bert", [LONG, "the cat"], "--overflow", "window")
    assert (stitched["truncated"], stitched["windowed"], stitched["tokens"]) == (0, 1, 242)
    # Of two windows of 158 words that overlap, each gives the half that is its own.
    first, last = (
        layers_of(" ".join(words))[-1] for words in (LONG.split()[:158], LONG.split()[82:])
    )
    expected = np.concatenate([first[:120], last[-120:]])
    np.testing.assert_allclose(rows_of(stitched, LONG), expected, rtol=0, atol=2e-4)
    np.testing.assert_allclose(rows_of(cut, LONG), first, rtol=0, atol=2e-4)


def test_preprocessor_beside_an_encoder_is_found(
    ec: CommandLine, hub: HubModules, flow: Flow, corpus: Path, tmp_path: Path
) -> None:
    preprocess = hub.preprocess("bert")
    assert preprocess is not None
    shutil.copytree(hub.path("bert"), tmp_path / "model")
    shutil.copytree(preprocess, tmp_path / "preprocess")
    report = ec.json(flow.store("bert"), "build", corpus, "--module", tmp_path / "model")
    # The same files elsewhere are the same view.
    assert (report["view"], report["misses"]) == (flow.report("bert")["view"], 0)
