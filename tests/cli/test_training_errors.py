"""Every training that cannot start or go on says why in one line, and leaves no run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import embedcache

CommandLine = Any
Built = Any

BASIC = ("--preset", "basic", "--epochs", "1")


class Corpora:
    """Puts datasets into a copy of the built store, of texts that it has: all of them hit."""

    def __init__(self, ec: CommandLine, built: Built, store: Path, folder: Path) -> None:
        self.store, self._ec, self._built, self._folder = store, ec, built, folder

    def put(self, labels: Sequence[str | None] = (), **splits: Sequence[str | None]) -> None:
        """Register a dataset ``made``; each label, or None, takes the next text."""
        texts = iter(self._built.texts)
        arguments = []
        for split, part in (splits or {"": labels}).items():
            path = self._folder / f"{split or 'all'}.txt"
            prefixes = [f"__label__{label} " if label else "" for label in part]
            lines = [f"{prefix}{next(texts)}\n" for prefix in prefixes]
            path.write_text("".join(lines), encoding="utf-8")
            arguments.append(f"{split}={path}" if split else str(path))
        record = self._ec.json(self.store, "build", *arguments, "--dataset", "made")
        assert record["misses"] == 0

    def refused(self, *arguments: str | Path) -> str:
        """The error of a training, once it is known that nothing is left of it."""
        runs = self._ec.json(self.store, "runs", "list")
        folders = sorted((self.store / "runs").iterdir())
        line: str = self._ec.error(self.store, "train", *arguments, *BASIC)
        assert self._ec.json(self.store, "runs", "list") == runs
        assert sorted((self.store / "runs").iterdir()) == folders
        assert list((self.store / "tmp").iterdir()) == []
        return line


@pytest.fixture
def corpora(ec: CommandLine, built: Built, copied: Path, tmp_path: Path) -> Corpora:
    return Corpora(ec, built, copied, tmp_path)


def test_unlabelled_corpus_is_refused_with_the_ways_to_label_it(corpora: Corpora) -> None:
    corpora.put([None] * 20)
    line = corpora.refused("made")
    assert "'made' has no labels" in line
    for way in ("__label__NAME text", "--label-field", "--labels FILE"):
        assert way in line


def test_labels_of_a_file_are_used(ec: CommandLine, corpora: Corpora, tmp_path: Path) -> None:
    corpora.put([None] * 20)
    labels = tmp_path / "labels"
    labels.write_text("good\nbad\n" * 10, encoding="utf-8")
    record = ec.json(corpora.store, "train", "made", "--labels", labels, *BASIC)
    shown = ec.json(corpora.store, "runs", "show", record["run"])
    assert shown["labels"] == ["bad", "good"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"good\nbad\n", "2 labels were given for the 20 documents of dataset 'made'"),
        (b"", "labels: the file holds no documents"),
        (b"good\n\xff\n", "labels:2: invalid UTF-8"),
        (b"good\n" * 20, "only one class"),
        (b"good\n\n" * 10, "10 of 20 documents of dataset 'made' have no label"),
        (None, "labels: no such file"),
    ],
)
def test_bad_labels_of_a_file_are_refused(
    corpora: Corpora, tmp_path: Path, content: bytes | None, said: str
) -> None:
    corpora.put([None] * 20)
    if content is not None:
        (tmp_path / "labels").write_bytes(content)
    assert said in corpora.refused("made", "--labels", tmp_path / "labels")


def test_one_class_is_refused(corpora: Corpora) -> None:
    corpora.put(["good"] * 20)
    line = corpora.refused()
    assert "'made' has only one class to train on, 'good'" in line


def test_label_that_only_the_test_split_has_is_refused(corpora: Corpora) -> None:
    corpora.put(train=["a", "b"] * 10, test=["a", "b", "c"])
    line = corpora.refused("made")
    assert "only the split 'test' of dataset 'made' has the label 'c'" in line


def test_splits_without_train_are_refused(corpora: Corpora) -> None:
    corpora.put(first=["a", "b"] * 10, second=["a", "b"])
    assert "it has first, second" in corpora.refused("made")


def test_documents_with_several_labels_are_refused_where_one_is_wanted(
    ec: CommandLine, corpora: Corpora
) -> None:
    corpora.put(["a", "b", "a __label__b"] * 5)
    line = corpora.refused("made", "--task", "single")
    assert "5 of 15 documents of dataset 'made' have several labels" in line
    assert "`--task multilabel`" in line
    assert ec.json(corpora.store, "train", "made", *BASIC)["dev"]["micro_f1"] >= 0.0


def test_texts_of_two_parts_are_refused_where_that_is_wanted(
    ec: CommandLine, built: Built, corpora: Corpora, tmp_path: Path
) -> None:
    corpora.put(train=["a", "b"] * 10, test=["a", "b"])
    with (tmp_path / "train.txt").open("a", encoding="utf-8") as file:
        file.write(f"__label__a {built.texts[20]}\n")
    sources = [f"{split}={tmp_path / split}.txt" for split in ("train", "test")]
    ec.json(corpora.store, "build", *sources, "--dataset", "made")
    line = corpora.refused("made", "--on-leak", "error")
    assert "1 documents of test of dataset 'made' have a text that train has too" in line
    assert "document 21 and 22" in line
    assert "--on-leak drop" in line
    done = ec(corpora.store, "train", "made", *BASIC)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: 1 documents of test of dataset 'made'")


def test_near_duplicates_are_refused_where_that_is_wanted(corpora: Corpora) -> None:
    corpora.put(train=["a", "b"] * 10, test=["a", "b"])
    line = corpora.refused("made", "--on-leak", "error", "--near-duplicates", "0.05")
    assert "have a pooled vector with a cosine of 0.05 or more to train" in line


@pytest.mark.parametrize("embedding", ["rand", "nonstatic", "multichannel"])
def test_table_of_tokens_without_a_dictionary_is_refused(
    ec: CommandLine, built: Built, corpora: Corpora, embedding: str
) -> None:
    arguments = (built.corpus, "--dtype", "float32", "--encoding", "dense")
    view = ec.json(corpora.store, "build", *arguments)["view"]
    line = corpora.refused("helpdesk", "--view", view, "--embedding", embedding)
    assert f"view {view[:12]} keeps no dictionary of tokens" in line
    assert "--encoding dictionary" in line


def test_tensorboard_that_is_not_installed_says_what_to_install(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = corpora.refused("helpdesk", "--tensorboard", tmp_path / "logs")
    assert "pip install 'embedcache[tensorboard]'" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "linear", "--filters", "9"), "filters must be left out"),
        (("--near-duplicates", "1.5"), "--near-duplicates"),
        (("--batch-tokens", "7"), "--batch-tokens"),
        (("--kernel-sizes", "3,x"), "--kernel-sizes must be whole numbers"),
    ],
)
def test_settings_that_cannot_be_are_usage_errors(
    ec: CommandLine, built: Built, options: tuple[str, ...], said: str
) -> None:
    done = ec(built.store, "train", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_nothing_to_resume_is_told(corpora: Corpora) -> None:
    assert "no unfinished training" in corpora.refused("--resume")


def test_batch_larger_than_the_data_is_refused(corpora: Corpora) -> None:
    corpora.put(["a", "b"] * 10)
    line = corpora.refused("made", "--batch-size", "500")
    assert "batch size 500 is larger than the 18 training documents" in line
    assert "--batch-size 18" in line


def test_more_folds_than_a_class_has_documents_are_refused(corpora: Corpora) -> None:
    corpora.put(["a"] * 10 + ["b"] * 3)
    line = corpora.refused("made", "--folds", "5")
    assert "5 folds are more than the 3 documents of the smallest class, 'b'" in line
    assert "3 folds or fewer" in line


@pytest.mark.parametrize("options", [(), ("--max-tokens", "5", "--dtype", "float32")], ids=str)
def test_view_that_misses_texts_says_how_many_and_what_mends_it(
    ec: CommandLine, built: Built, corpora: Corpora, tmp_path: Path, tiny_module: str,
    options: tuple[str, ...],
) -> None:  # fmt: skip
    corpora.put(["a", "b"] * 10)
    lines = "".join(f"{text}\n" for text in built.texts[:15])
    (tmp_path / "some.txt").write_text(lines, encoding="utf-8")
    module = ("--module", tiny_module)
    view = ec.json(corpora.store, "build", tmp_path / "some.txt", *module, *options)["view"]
    line = corpora.refused("made", "--view", view)
    assert f"view {view[:12]} lacks 5 of 20 texts of dataset 'made'" in line
    quoted = re.search(r"`embedcache (build CORPUS [^`]*)`", line)
    assert quoted is not None
    command = [
        str(tmp_path / "all.txt") if word == "CORPUS" else word for word in shlex.split(quoted[1])
    ]
    assert ec.json(corpora.store, *command)["view"] == view
    ec.ok(corpora.store, "train", "made", "--view", view, *BASIC)


def test_loss_that_is_no_number_ends_the_training(corpora: Corpora) -> None:
    line = corpora.refused("helpdesk", "--lr", "1e30")
    assert re.search(r"the loss became (nan|inf) at (step \d+ of \d+ of epoch|the dev part)", line)
    assert "--lr 0.001" in line


def test_unknown_names_are_refused_with_those_there_are(
    ec: CommandLine, built: Built, corpora: Corpora
) -> None:
    assert "no dataset 'nope'; there are: helpdesk" in corpora.refused("nope")
    version = built.build["version"]
    assert f"helpdesk@{version}" in corpora.refused("helpdesk@ffffffff0")
    line = corpora.refused("--view", "zz")
    assert f"no view 'zz'; there are: {built.build['view']}" in line
    known = f"no run 'nope'; there are: {built.train['run']}"
    for command in (("predict", "nope", "text"), ("runs", "show", "nope")):
        assert known in ec.error(corpora.store, *command)
    assert "no dataset 'nope'" in ec.error(corpora.store, "datasets", "show", "nope")
    assert "no view 'zz'" in ec.error(corpora.store, "views", "show", "zz")
    assert "no view 'zz'" in ec.error(corpora.store, "get", "text", "--view", "zz")


def test_empty_store_is_refused_with_what_to_do(ec: CommandLine, tmp_path: Path) -> None:
    store = tmp_path / "store"
    embedcache.open_store(store).close()
    for command in (("train",), ("train", "name"), ("datasets", "show", "name"), ("get", "text")):
        assert "`embedcache build" in ec.error(store, *command)
    for command in (("predict", "last", "text"), ("runs", "show", "last")):
        assert "`embedcache train`" in ec.error(store, *command)
    assert not any((store / "runs").iterdir())


def test_no_dataset_but_features_is_refused(
    ec: CommandLine, tmp_path: Path, tiny_module: str
) -> None:
    store, corpus = tmp_path / "store", tmp_path / "a.txt"
    corpus.write_bytes(b"one\n\xff\n")
    ec.error(store, "build", corpus, "--module", tiny_module)
    assert "`embedcache build` makes one" in ec.error(store, "train")
    assert ec.json(store, "stats")["datasets"] == 0


@pytest.mark.parametrize("file", ["model.keras", "run.json"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_damaged_run_says_so(
    ec: CommandLine, built: Built, copied: Path, file: str, harm: Callable[[Path], object]
) -> None:
    harm(copied / "runs" / built.train["run"] / file)
    line = ec.error(copied, "predict", "last", built.texts[0])
    assert file in line
    assert "`embedcache train`" in line
