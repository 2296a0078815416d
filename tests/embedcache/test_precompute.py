"""The precompute stage, with real modules, real files and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import embedcache
from embedcache.errors import (
    CorpusError,
    EncodingError,
    ModuleChangedError,
    ModuleError,
    UnknownNameError,
)
from embedcache.modules.bag_of_words import BagOfWordsEncoder, combine_rows
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.pinning import module_digest, pin_module
from embedcache.precompute import BuildOptions, BuildProgress, default_dataset_name
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import WriterLimits

MakeModule = Callable[..., Path]


@pytest.fixture(scope="module")
def module(make_module: MakeModule) -> str:
    return str(make_module())


def _write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_every_text_is_computed_once_ever(store: FeatureStore, tmp_path: Path, module: str) -> None:
    corpus = _write(tmp_path / "a.txt", "one two", "three", "one two", "")
    first = embedcache.build(store, corpus, module=module)
    assert (first.texts, first.unique, first.hits, first.misses) == (4, 3, 0, 3)
    assert (first.tokens, first.shards) == (2 + 1 + 1, 1)
    again = embedcache.build(store, corpus, module=module)
    assert (again.hits, again.misses, again.tokens, again.shards) == (3, 0, 0, 0)
    assert again.version == first.version


def test_same_text_in_another_corpus_is_not_embedded_again(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    embedcache.build(store, _write(tmp_path / "a.txt", "one", "two"), module=module)
    other = _write(tmp_path / "b.txt", "two", "new", "one")
    report = embedcache.build(store, other, module=module)
    assert (report.hits, report.misses) == (2, 1)


def test_changing_one_line_costs_one_miss(store: FeatureStore, tmp_path: Path, module: str) -> None:
    lines = [f"text number {number}" for number in range(500)]
    embedcache.build(store, _write(tmp_path / "a.txt", *lines), module=module)
    lines[123] += " changed"
    report = embedcache.build(store, _write(tmp_path / "a.txt", *lines), module=module)
    assert (report.hits, report.misses) == (499, 1)


def test_another_module_or_setting_is_another_view(
    store: FeatureStore, tmp_path: Path, module: str, make_module: MakeModule
) -> None:
    corpus = _write(tmp_path / "a.txt", "one", "two")
    views = {
        embedcache.build(store, corpus, module=module).view,
        embedcache.build(store, corpus, module=str(make_module(seed=1))).view,
        embedcache.build(store, corpus, module=module, options=BuildOptions(dtype="float32")).view,
        embedcache.build(store, corpus, module=module, options=BuildOptions(max_tokens=7)).view,
    }
    assert len(views) == 4


def test_a_copy_of_a_module_is_the_same_view(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    import shutil

    corpus = _write(tmp_path / "a.txt", "one", "two")
    embedcache.build(store, corpus, module=module)
    shutil.copytree(module, tmp_path / "copy")
    report = embedcache.build(store, corpus, module=str(tmp_path / "copy"))
    assert (report.hits, report.misses) == (2, 0)


def test_stored_matrix_equals_the_modules_output_token_by_token(
    store: FeatureStore, kim_data: Path
) -> None:
    sentences = [
        line.split("\t", 1)[1].strip('"')
        for line in (kim_data / "sst2.test.tsv").read_text(encoding="utf-8").splitlines()[1:301]
    ]
    report = embedcache.build(store, {"test": kim_data / "sst2.test.tsv"})
    pinned = pin_module(store.catalog, DEFAULT_HANDLE)
    encoder = pinned.load_encoder(store.catalog.find_view(report.view).view)
    assert isinstance(encoder, BagOfWordsEncoder)
    texts = [text for text in sentences if store.contains(report.view, [text])[0]]
    assert len(texts) > 250
    features = store.get(report.view, texts)
    assert features.values.dtype == np.float16
    encoded = [text.encode() for text in texts]
    vectors = encoder.embed_sentences(encoded)
    for text, matrix, vector in zip(encoded, features, vectors, strict=True):
        own = encoder.embed_sentences(encoder.tokenize_texts([text]).tokens)
        np.testing.assert_array_equal(matrix.astype(np.float32), own)
        np.testing.assert_allclose(combine_rows(own, "sqrtn"), vector, atol=1e-5)


def test_dense_and_dictionary_encodings_hold_the_same_numbers(tmp_path: Path, module: str) -> None:
    corpus = _write(tmp_path / "a.txt", *[f"w{number % 7} w{number % 5}" for number in range(60)])
    texts = ["w1 w1", "w3 w0", "w6 w4"]
    values = []
    for encoding in ("dense", "dictionary"):
        with embedcache.open_store(tmp_path / encoding) as store:
            options = BuildOptions(limits=WriterLimits(encoding=encoding))
            report = embedcache.build(store, corpus, module=module, options=options)
            values.append(store.get(report.view, texts).values)
    np.testing.assert_array_equal(*values)


def test_labels_and_splits_are_registered(store: FeatureStore, tmp_path: Path, module: str) -> None:
    train = _write(tmp_path / "set.train.txt", "__label__b one", "__label__a two")
    test = _write(tmp_path / "set.test.txt", "__label__b three")
    report = embedcache.build(store, {"train": train, "test": test}, module=module)
    assert report.dataset == "set"
    dataset = store.load_dataset("set")
    assert dataset.label_names == ("a", "b")
    assert dataset.count_splits() == {"train": 2, "test": 1}
    labels = [dataset.label_names[code] for code in dataset.first_labels(np.arange(3))]
    assert labels == ["b", "a", "b"]


def test_dataset_names_come_from_the_first_file() -> None:
    from embedcache.corpus import Source

    assert default_dataset_name([Source("x/sst2.train.tsv", "train")]) == "sst2"
    assert default_dataset_name([Source("-", None)]) == "stdin"
    assert default_dataset_name([Source(".hidden", None)]) == "corpus"
    assert default_dataset_name([Source("a@b c\udcff.txt", None)]) == "a_b_c_"


@pytest.mark.parametrize("name", ["", "a\nb", "a@b", "x" * 256, "\udcff"])
def test_illegal_dataset_name_is_refused_before_anything_is_read(
    store: FeatureStore, name: str
) -> None:
    with pytest.raises(CorpusError, match="cannot name a dataset"):
        embedcache.build(store, "/no/such/file", dataset=name)


def test_long_texts_are_cut_flagged_and_counted(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    corpus = _write(tmp_path / "a.txt", "a b c d e", "a b", "a b c")
    report = embedcache.build(store, corpus, module=module, options=BuildOptions(max_tokens=3))
    assert report.truncated == 1
    refs, reader = store.locate(report.view, ["a b c d e", "a b", "a b c"])
    assert refs.truncated.tolist() == [True, False, False]
    matrices = reader.gather(refs)
    assert matrices.lengths.tolist() == [3, 2, 3]
    np.testing.assert_array_equal(matrices[0], matrices[2])


def test_overflow_error_names_the_line(store: FeatureStore, tmp_path: Path, module: str) -> None:
    corpus = _write(tmp_path / "a.txt", "a b", "a b c d e")
    options = BuildOptions(max_tokens=3, overflow="error")
    with pytest.raises(EncodingError, match=r"a\.txt:2: 5 tokens, the limit is 3"):
        embedcache.build(store, corpus, module=module, options=options)


@pytest.mark.parametrize(("twist", "reason"), [("nan", "NaN"), ("huge", "too large for float16")])
def test_numbers_that_cannot_be_stored_name_the_line(
    store: FeatureStore, tmp_path: Path, make_module: MakeModule, twist: str, reason: str
) -> None:
    corpus = _write(tmp_path / "a.txt", "fine text", "also fine", f"this is {twist} here")
    with pytest.raises(EncodingError, match=rf"a\.txt:3: token '{twist}': .*{reason}"):
        embedcache.build(store, corpus, module=str(make_module(twist=twist)))
    assert store.catalog.shards() == []


def test_huge_numbers_fit_float32(
    store: FeatureStore, tmp_path: Path, make_module: MakeModule
) -> None:
    corpus = _write(tmp_path / "a.txt", "this is huge")
    report = embedcache.build(
        store, corpus, module=str(make_module(twist="huge")), options=BuildOptions(dtype="float32")
    )
    assert store.get(report.view, ["this is huge"]).values.max() == 1e6


def test_bad_line_late_in_the_corpus_keeps_what_was_computed(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    # Longer than the blocks of 1 MiB that are checked at once.
    good = [f"text {number} {'x' * 450}" for number in range(5000)]
    corpus = tmp_path / "a.txt"
    corpus.write_bytes("\n".join(good).encode() + b"\nbad \xff line\n")
    with pytest.raises(CorpusError, match=r"a\.txt:5001"):
        embedcache.build(store, corpus, module=module)
    assert store.catalog.datasets() == []
    report = embedcache.build(store, _write(tmp_path / "b.txt", *good), module=module)
    assert report.hits >= 2000
    assert list(store.layout.tmp.iterdir()) == []


def test_interruption_keeps_what_was_computed(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    corpus = _write(tmp_path / "a.txt", *[f"text {number}" for number in range(20_000)])

    def interrupt(progress: BuildProgress) -> None:
        if progress.texts > 9000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedcache.build(store, corpus, module=module, on_progress=interrupt)
    report = embedcache.build(store, corpus, module=module)
    assert report.hits >= 8192
    assert report.hits + report.misses == 20_000


def test_missing_file_is_told_before_the_module_is_loaded(
    store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"nothing\.txt"):
        embedcache.build(store, tmp_path / "nothing.txt", module="/no/such/module")
    with pytest.raises(ModuleError, match="no such folder"):
        embedcache.build(store, _write(tmp_path / "a.txt", "a"), module="/no/such/module")


def test_table_that_is_full_starts_anew_without_changing_numbers(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"w{number} w{number % 50} common" for number in range(9000)]
    corpus = _write(tmp_path / "a.txt", *lines)
    with embedcache.open_store(tmp_path / "large") as store:
        view = embedcache.build(store, corpus, module=module).view
        expected = store.get(view, lines).values
    monkeypatch.setattr("embedcache.compute.tokens.MAX_TABLE_ROWS", 3000)
    with embedcache.open_store(tmp_path / "small") as store:
        report = embedcache.build(store, corpus, module=module)
        assert report.shards == 3
        np.testing.assert_array_equal(store.get(report.view, lines).values, expected)


def test_embed_computes_and_keeps_what_is_missing(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    view = embedcache.build(store, _write(tmp_path / "a.txt", "one"), module=module).view
    features = embedcache.embed(store, view, ["two three", "one", "two three"])
    assert features.lengths.tolist() == [2, 1, 2]
    assert store.contains(view, ["two three"]).all()
    np.testing.assert_array_equal(store.get(view, ["two three"]).values, features[0])
    with pytest.raises(UnknownNameError):
        embedcache.embed(store, "ffff", ["one"])


def test_same_texts_embedded_by_two_threads_are_stored_once(
    store: FeatureStore, tmp_path: Path, module: str
) -> None:
    view = embedcache.build(store, _write(tmp_path / "a.txt", "one"), module=module).view
    texts = [f"text {number}" for number in range(500)]

    def embed(_number: int) -> np.ndarray:
        with embedcache.open_store(store.path) as own:
            return embedcache.embed(own, view, texts).values

    with ThreadPoolExecutor(2) as threads:
        values = list(threads.map(embed, range(2)))
    np.testing.assert_array_equal(*values)
    assert sum(shard.num_texts for shard in store.catalog.shards(view)) == 1 + len(texts)


def test_embed_refuses_a_module_that_has_changed(
    store: FeatureStore, tmp_path: Path, make_module: MakeModule
) -> None:
    path = make_module(seed=5)
    view = embedcache.build(store, _write(tmp_path / "a.txt", "one"), module=str(path)).view
    with (path / "saved_model.pb").open("ab") as file:
        file.write(b"\x9a\x06\x00")  # an unknown protocol buffer field: loads as before
    assert len(embedcache.embed(store, view, ["one"])) == 1
    with pytest.raises(ModuleChangedError, match=r"has pinned .*modules pin"):
        embedcache.embed(store, view, ["two"])
    pinned = store.catalog.module_pin(str(path))
    store.catalog.pin_module(str(path), module_digest(None, path))
    with pytest.raises(ModuleChangedError, match=rf"was made with {pinned}"):
        embedcache.embed(store, view, ["two"])


def test_build_refuses_a_module_that_has_changed_until_it_is_pinned_anew(
    store: FeatureStore, tmp_path: Path, make_module: MakeModule
) -> None:
    path = make_module(seed=6)
    corpus = _write(tmp_path / "a.txt", "one")
    before = embedcache.build(store, corpus, module=str(path)).view
    old = module_digest(None, path)
    with (path / "saved_model.pb").open("ab") as file:
        file.write(b"\x9a\x06\x00")
    new = module_digest(None, path)
    with pytest.raises(ModuleChangedError, match=f"digest {new}, this store has pinned {old}"):
        embedcache.build(store, corpus, module=str(path))
    store.catalog.pin_module(str(path), new)
    report = embedcache.build(store, corpus, module=str(path))
    assert report.view != before
    assert report.misses == 1


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_build_of_hits_loads_neither_tensorflow_nor_keras(tmp_path: Path, module: str) -> None:
    corpus = _write(tmp_path / "a.txt", "one", "two")
    with embedcache.open_store(tmp_path / "store") as store:
        embedcache.build(store, corpus, module=module)
    code = (
        "import sys, embedcache\n"
        "with embedcache.open_store(sys.argv[1]) as store:\n"
        "    report = embedcache.build(store, sys.argv[2], module=sys.argv[3])\n"
        "    stream = embedcache.FeatureStream(store)\n"
        "    print(report.misses, sum(len(batch) for batch in stream),\n"
        "          *({'tensorflow', 'keras', 'tensorflow_hub'} & set(sys.modules)))\n"
    )
    done = _run(code, str(tmp_path / "store"), str(corpus), module)
    assert done.stdout.split() == ["0", "2"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", 0.0, 0.0),
        ("float16", 0.0, 2**-11),
        ("bfloat16", 1e-4, 2**-8),
        ("int8", 1e-4, 0.004),
    ],
)
def test_cost_of_storing_is_measured_and_kept_with_the_view(
    tmp_path: Path, module: str, dtype: str, low: float, high: float
) -> None:
    corpus = _write(tmp_path / "a.txt", *[f"text {number}" for number in range(500)])
    options = BuildOptions(dtype=dtype)
    with embedcache.open_store(tmp_path / "store") as store:
        report = embedcache.build(store, corpus, module=module, options=options)
        assert low <= report.fidelity["max_error"] <= high
        assert low / 10 <= report.fidelity["rms_error"] <= high
        again = embedcache.build(store, corpus, module=module, options=options)
        assert (again.misses, again.fidelity) == (0, report.fidelity)
        record = store.catalog.find_view(report.view)
        assert (record.rms_error, record.max_error) == (
            report.fidelity["rms_error"],
            report.fidelity["max_error"],
        )


_SLOW_BUILD = """
import sys, time, embedcache
from embedcache.precompute import BuildOptions
from embedcache.store.writer import WriterLimits

def show(progress):
    print(progress.texts, flush=True)
    time.sleep(0.02)

store = embedcache.open_store(sys.argv[1])
options = BuildOptions(limits=WriterLimits(max_texts=4096))
embedcache.build(store, sys.argv[2], module=sys.argv[3], options=options, on_progress=show)
"""


@pytest.mark.parametrize("num_batches", [4, 9])
def test_kill_in_the_middle_of_a_build_loses_at_most_two_shards(
    tmp_path: Path, module: str, num_batches: int
) -> None:
    corpus = _write(tmp_path / "a.txt", *[f"text {number}" for number in range(60_000)])
    arguments = [str(tmp_path / "store"), str(corpus), module]
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_BUILD, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(num_batches):
            read = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    with embedcache.open_store(tmp_path / "store") as store:
        assert store.catalog.datasets() == []
        report = embedcache.build(store, corpus, module=module)
        # The open one, the one that is being written, and a buffer of texts.
        assert report.hits >= read - 3 * 4096
        assert report.hits + report.misses == 60_000
        verified = verify_store(store)
        assert verified.is_well
        assert verified.rows >= 60_000
        assert embedcache.build(store, corpus, module=module).misses == 0


def test_sigterm_keeps_what_was_computed_and_says_130(tmp_path: Path, module: str) -> None:
    corpus = _write(tmp_path / "a.txt", *[f"text {number}" for number in range(300_000)])
    code = "import sys; from cli.main import main; main()"
    command = ["--store", str(tmp_path / "store"), "build", "-", "--module", module]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        # The pipe holds 64 KiB: when this much is taken, the first batches are computed.
        process.stdin.write(corpus.read_bytes())
        process.stdin.flush()
        os.kill(process.pid, signal.SIGTERM)
        stderr = process.stderr.read().decode()
        status = process.wait()
    assert status == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    with embedcache.open_store(tmp_path / "store") as store:
        assert verify_store(store).is_well
        assert embedcache.build(store, corpus, module=module).hits > 100_000
