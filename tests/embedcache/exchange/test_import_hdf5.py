"""Imports of what AllenNLP and bilm-tf wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import embedcache
from embedcache.errors import CorpusError, ExchangeError, ModuleError
from embedcache.exchange import hdf5_reader
from embedcache.exchange.importing import ImportOptions, ImportReport, import_features
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import WriterLimits

Import = Callable[..., ImportReport]
Lines = Callable[..., Path]

LINES = ["the cat sat on the mat", "a dog", "ünïcode  with   spaces", "one", "\ttabs\tand more "]


def test_all_layers_lie_side_by_side_and_are_kept_apart(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    report = take(foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES))
    for line, matrix in zip(LINES, store.get(report.view, LINES), strict=True):
        np.testing.assert_array_equal(matrix, foreign.rows_of(line), strict=True)
    view = store.catalog.find_view(report.view).view
    assert (view.output, view.num_layers, view.dim) == ("all:0,1,2", 3, 3 * foreign.DIM)
    assert (report.texts, report.unique, report.misses, report.hits) == (5, 5, 5, 0)
    assert report.tokens == sum(len(line.split()) for line in LINES)
    stream = embedcache.FeatureStream(store, report.dataset, shuffle=False)
    assert stream.layer_names == ("0", "1", "2")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_layer_can_be_taken(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    layer: int,
) -> None:  # fmt: skip
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES)
    report = take(path, write_lines(*LINES), layer=str(layer))
    (matrix,) = store.get(report.view, [LINES[0]])
    np.testing.assert_array_equal(matrix, foreign.layers_of(LINES[0])[layer], strict=True)
    assert store.catalog.find_view(report.view).view.output == str(layer)
    assert report.layers == 1


def test_layer_that_is_not_there_is_refused_with_those_that_are(
    take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES)
    for layer in ("3", "-1", "top", ""):
        with pytest.raises(ExchangeError, match="give --layer all or one of 0, 1, 2"):
            take(path, write_lines(*LINES), layer=layer)
    top = foreign.write_allennlp(tmp_path / "top.hdf5", LINES, output_format="top")
    with pytest.raises(ExchangeError, match="no layers; leave --layer 1 out"):
        take(top, write_lines(*LINES), layer="1")


@pytest.mark.parametrize("output_format", ["top", "average"])
def test_top_and_average_are_one_vector_a_token(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    output_format: str,
) -> None:  # fmt: skip
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES, output_format=output_format)
    report = take(path, write_lines(*LINES))
    layers = foreign.layers_of(LINES[1])
    wanted = layers[-1] if output_format == "top" else np.average(layers, axis=0)
    np.testing.assert_array_equal(store.get(report.view, [LINES[1]])[0], wanted, strict=True)
    assert (report.layers, report.dim) == (1, foreign.DIM)


def test_file_without_its_sentences_is_taken_too(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES, forget_sentences=True)
    report = take(path, write_lines(*LINES, end="\r\n"))
    assert store.contains(report.view, LINES).all()


def test_bilm_file_has_a_dataset_for_a_blank_line(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    lines = ["a b", "", "c d e", "  "]
    path = foreign.write_bilm(tmp_path / "lm.hdf5", lines)
    for settings in ({}, {"format": "bilm"}):
        report = take(path, write_lines(*lines), **settings)
        assert report.blank == 0
        assert store.get(report.view, lines).lengths.tolist() == [2, 0, 3, 0]
    with pytest.raises(ExchangeError, match=r"4 texts, but .* has 4 \(2 of them blank\)"):
        take(path, write_lines(*lines), format="allennlp")


def test_blank_lines_that_allennlp_refused_are_passed_over(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    lines = ["", "a b", "", "c d e", " \t"]
    path = foreign.write_allennlp(tmp_path / "e.hdf5", ["a b", "c d e"])
    for settings in ({}, {"format": "allennlp"}):
        report = take(path, write_lines(*lines), **settings)
        assert report.blank == 3
        assert store.get(report.view, lines).lengths.tolist() == [0, 2, 0, 3, 0]
        np.testing.assert_array_equal(
            store.get(report.view, ["c d e"])[0], foreign.rows_of("c d e")
        )
    with pytest.raises(ExchangeError, match=r"2 texts, but .* has 5"):
        take(path, write_lines(*lines), format="bilm")


def test_import_again_writes_nothing(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path, texts = foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES)
    first = take(path, texts)
    shards = store.catalog.shards()
    again = take(path, texts)
    assert (again.hits, again.misses, again.shards, again.differing) == (5, 0, 0, 0)
    assert (again.view, again.version) == (first.view, first.version)
    assert store.catalog.shards() == shards


def test_files_under_one_name_are_one_view_and_under_another_another(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    first = take(foreign.write_allennlp(tmp_path / "a.hdf5", LINES), write_lines(*LINES))
    more = ["other lines", LINES[1]]
    path = foreign.write_allennlp(tmp_path / "b.hdf5", more)
    second = take(path, write_lines(*more, name="more.txt"))
    assert second.view == first.view
    assert (second.hits, second.misses) == (1, 1)
    other = take(path, write_lines(*more, name="more.txt"), name="elmo-2")
    assert other.view != first.view
    assert (other.hits, other.module) == (0, "imported:elmo-2")


def test_many_shards_and_blocks_hold_each_text_once(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines = [f"line {number % 37} of many" for number in range(100)]
    path = foreign.write_allennlp(tmp_path / "e.hdf5", lines)
    monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", 7)
    report = take(path, write_lines(*lines), limits=WriterLimits(max_texts=10))
    assert (report.texts, report.unique, report.misses, report.differing) == (100, 37, 37, 0)
    assert report.shards == len(store.catalog.shards()) > 1
    assert sum(shard.num_texts for shard in store.catalog.shards()) == 37
    for line, matrix in zip(lines, store.get(report.view, lines), strict=True):
        np.testing.assert_array_equal(matrix, foreign.rows_of(line))


def test_repeated_line_with_other_features_keeps_the_first_and_is_counted(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines = ["the same", "in between", "the same", "the same", "the same"]
    states = [0, 0, 0, 7, 8]
    path = foreign.write_allennlp(tmp_path / "e.hdf5", lines, states=states)
    for block_texts, limits in ((100, WriterLimits()), (1, WriterLimits(max_texts=1))):
        monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", block_texts)
        name = f"elmo {block_texts}"
        report = take(path, write_lines(*lines), name=name, limits=limits)
        assert (report.unique, report.misses, report.differing) == (2, 2, 2)
        (matrix,) = store.get(report.view, ["the same"])
        np.testing.assert_array_equal(matrix, foreign.rows_of("the same"))


def test_labels_and_splits_of_the_text_file_are_registered(
    store: FeatureStore, foreign: ModuleType, tmp_path: Path
) -> None:
    train, test = tmp_path / "train.ft", tmp_path / "test.ft"
    train.write_text("__label__x a b c\n__label__y d e\n")
    test.write_text("__label__x f\n")
    path = foreign.write_allennlp(tmp_path / "e.hdf5", ["a b c", "d e", "f"])
    texts = {"train": train, "test": test}
    report = import_features(store, path, name="elmo", texts=texts, dataset="mine")
    dataset = store.load_dataset("mine")
    assert dataset.count_labels() == {"x": 2, "y": 1}
    assert dataset.count_splits() == {"train": 2, "test": 1}
    assert store.catalog.newest_view_of(dataset.version) == report.view
    record = store.catalog.find_dataset("mine")
    assert [source["path"] for source in record.sources] == [str(train), str(test)]
    assert all(source["digest"] for source in record.sources)


def test_float16_halves_what_fits_and_refuses_what_does_not(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    report = take(path, write_lines(*LINES), dtype="float16")
    (matrix,) = store.get(report.view, [LINES[0]])
    np.testing.assert_array_equal(matrix, foreign.rows_of(LINES[0]).astype(np.float16), strict=True)
    with h5py.File(path, "r+") as file:
        file["2"][1, 0, 3] = 70000.0
    with pytest.raises(
        ExchangeError, match=r"dataset '2' \(.*sentences.txt:3\): the value 70000 .*--dtype float32"
    ):
        take(path, write_lines(*LINES), name="other", dtype="float16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_number_that_is_none_is_refused_and_what_came_before_is_kept(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, bad: float,
) -> None:  # fmt: skip
    monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", 2)
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    with h5py.File(path, "r+") as file:
        file["3"][2, 0, 5] = bad
    with pytest.raises(ExchangeError, match=r"lm.hdf5: dataset '3' \(.*:4\): there is a NaN"):
        take(path, write_lines(*LINES))
    (view,) = store.catalog.views()
    assert store.contains(view.view, LINES).tolist() == [True, True, False, False, False]
    assert store.catalog.datasets() == []
    assert take(foreign.write_bilm(path, LINES), write_lines(*LINES)).hits == 2


def test_double_precision_and_big_endian_numbers_are_taken(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    values = np.array([[1.5, -2.25], [0.1, 3e-5]])
    for dtype in ("<f8", ">f8", ">f4", ">f2", "<f2"):
        path = tmp_path / "e.hdf5"
        with h5py.File(path, "w") as file:
            file["0"] = values.astype(dtype)
        report = take(path, write_lines("a b"), name=dtype)
        wanted = "float16" if dtype.endswith("2") else "float32"
        (matrix,) = store.get(report.view, ["a b"])
        np.testing.assert_array_equal(matrix, values.astype(dtype).astype(wanted), strict=True)
    with h5py.File(path, "w") as file:
        file["0"] = values * 1e300
    with pytest.raises(ExchangeError, match="NaN or an infinity"):
        take(path, write_lines("a b"), name="huge")


def test_interrupted_import_keeps_what_it_has_and_goes_on(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, texts = foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES)
    monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", 2)
    real = hdf5_reader.Hdf5Features.read

    def interrupted(source: Any, first: int, last: int) -> Any:
        if first >= 2:
            raise KeyboardInterrupt
        return real(source, first, last)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hdf5_reader.Hdf5Features, "read", interrupted)
        take(path, texts)
    assert store.catalog.datasets() == []
    assert list(store.layout.tmp.iterdir()) == []
    report = take(path, texts)
    assert (report.hits, report.misses) == (2, 3)
    for line, matrix in zip(LINES, store.get(report.view, LINES), strict=True):
        np.testing.assert_array_equal(matrix, foreign.rows_of(line), strict=True)


def test_progress_runs_to_the_end(
    store: FeatureStore, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES)
    monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", 2)
    seen: list[Any] = []
    import_features(store, path, name="x", texts=write_lines(*LINES), on_progress=seen.append)
    assert [(progress.texts, progress.misses) for progress in seen] == [(2, 2), (4, 4), (5, 5)]
    assert seen[-1].bytes_read == seen[-1].bytes_total == path.stat().st_size


# What does not fit together


def refuse(store: FeatureStore, take: Import, path: Path, texts: Path | None, match: str) -> str:
    """The error's line, once it is known that nothing was written."""
    with pytest.raises(ExchangeError, match=match) as caught:
        take(path, texts)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert (store.catalog.views(), store.catalog.shards(), store.catalog.datasets()) == ([], [], [])
    assert list(store.layout.tmp.iterdir()) == []
    return str(caught.value)


def test_line_of_other_length_is_told_with_both_counts(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    lines = [*LINES[:3], "one more", *LINES[4:]]
    said = refuse(
        store, take, path, write_lines(*lines), "dataset '3' has 1 tokens, but .*:4 has 2"
    )
    assert "name the very file" in said


def test_other_number_of_lines_is_told_with_both_counts(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    for lines in (LINES[:4], [*LINES, "x"]):
        texts = write_lines(*lines)
        refuse(store, take, path, texts, f"5 texts, but .*sentences.txt has {len(lines)};")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["the cat sat on the hat", *LINES[1:]], "txt:1: its text is none of the sentences"),
        ([*LINES[:1], "one", LINES[2], "a dog", LINES[4]], "txt:4: its text is dataset '1'"),
    ],
)
def test_sentences_of_the_file_must_be_those_of_the_lines(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    lines: list[str], match: str,
) -> None:  # fmt: skip
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES)
    refuse(store, take, path, write_lines(*lines), match)


def test_texts_have_to_be_named(
    store: FeatureStore, take: Import, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_allennlp(tmp_path / "e.hdf5", LINES)
    refuse(store, take, path, None, "name the text file with --texts")


def test_unreadable_text_file_is_an_error_of_its_own(
    take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    with pytest.raises(CorpusError, match="no such file"):
        take(path, tmp_path / "nope.txt")
    with pytest.raises(CorpusError, match="no documents"):
        take(path, write_lines())


@pytest.mark.parametrize("name", ["", " elmo", "a\nb", "x" * 256])
def test_name_that_cannot_be_told_is_refused(
    take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path, name: str
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    with pytest.raises(ExchangeError, match="cannot name imported features"):
        take(path, write_lines(*LINES), name=name)


# Files that someone made to look like one


def _not_hdf5(path: Path) -> None:
    path.write_bytes(b"the cat 0.1 0.2\n")


def _cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _empty(path: Path) -> None:
    h5py.File(path, "w").close()


def _change(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def _without(file: Any) -> None:
    del file["1"]


def _by_sentence(file: Any) -> None:
    file.move("4", "the cat / sat")


def _leading_zero(file: Any) -> None:
    file.move("4", "04")


def _soft_link(file: Any) -> None:
    del file["1"]
    file["1"] = h5py.SoftLink("/0")


def _external_link(file: Any) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["secret"] = np.ones((3, 2, 6), np.float32)
    del file["1"]
    file["1"] = h5py.ExternalLink("other.h5", "/secret")


def _external_storage(file: Any) -> None:
    secret = Path(file.filename).with_name("secret.bin")
    secret.write_bytes(bytes(144))
    del file["1"]
    file.create_dataset("1", (3, 2, 6), "<f4", external=[(str(secret), 0, 144)])


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3, 2, 6), "<f4")
    layout[...] = h5py.VirtualSource(file["1"])
    del file["1"]
    file.create_virtual_dataset("1", layout)


def _huge_claim(file: Any) -> None:
    del file["1"]
    file.create_dataset("1", (3, 1 << 45, 6), "<f4")


def _huge_chunked_claim(file: Any) -> None:
    del file["1"]
    file.create_dataset("1", (3, 1 << 45, 6), "<f4", chunks=(1, 1, 6))


def _compressed(file: Any) -> None:
    values = file["1"][()]
    del file["1"]
    file.create_dataset("1", data=values, compression="gzip")


def _group(file: Any) -> None:
    del file["1"]
    file.create_group("1")


def _replaced(values: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file["1"]
        file["1"] = values

    return change


def _sentences(value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file["sentence_to_index"] = value

    return change


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (Path.unlink, "No such file"),
        (_not_hdf5, "neither .npz nor HDF5"),
        (_cut_short, "cannot be read as HDF5|cut short"),
        (_empty, "holds no features"),
        (_change(_without), "dataset '1' is missing, though there are 4 up to '4'"),
        (_change(_by_sentence), "'the cat ', which is not the number"),
        (_change(_leading_zero), "'04', which is not the number"),
        (_change(_soft_link), "dataset '1' is a link"),
        (_change(_external_link), "dataset '1' is a link"),
        (_change(_external_storage), "dataset '1' is not stored plainly"),
        (_change(_virtual), "dataset '1' is not stored plainly"),
        (_change(_huge_claim), "dataset '1' claims 2533274790395904 bytes"),
        (_change(_huge_chunked_claim), "dataset '1' is not stored plainly"),
        (_change(_compressed), "h5repack -l CONTI"),
        (_change(_group), "dataset '1' is no array"),
        (
            _change(_replaced(np.ones((3, 2, 5), "f4"))),
            r"'1' is \(3, 2, 5\).*dataset '0' is",
        ),
        (_change(_replaced(np.ones((2, 2, 6), "f4"))), r"'1' is \(2, 2, 6\).*must agree"),
        (_change(_replaced(np.ones((2, 6), "f4"))), r"'1' is \(2, 6\).*must agree"),
        (_change(_replaced(np.ones((3, 2, 6), "f8"))), "float64.*must agree"),
        (_change(_replaced(np.ones(6, "f4"))), r"has the shape \(6,\)"),
        (_change(_replaced(np.ones((3, 2, 6), "i4"))), "holds int32; features must be float"),
        (_change(_replaced("text")), "holds object"),
        (_change(_sentences(np.ones(1))), "is not the one string"),
        (_change(_sentences(["{"])), "cannot be read as HDF5"),
        (_change(_sentences(['["a"]'])), "cannot be read as HDF5"),
        (_change(_sentences([""])), "cannot be read as HDF5"),
        (_change(_sentences(["{}", "{}"])), "is not the one string"),
    ],
)
def test_file_that_is_not_what_it_should_be_is_refused_before_anything_is_read(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], match: str,
) -> None:  # fmt: skip
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    damage(path)

    def refuse_to_read(*_: object) -> None:
        raise AssertionError("numbers were read before the file was checked")

    monkeypatch.setattr("embedcache.exchange.hdf5_reader.Hdf5Features.read", refuse_to_read)
    refuse(store, take, path, write_lines(*LINES), match)


def test_link_as_the_sentences_is_refused(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path = foreign.write_bilm(tmp_path / "lm.hdf5", LINES)
    with h5py.File(path, "r+") as file:
        file["sentence_to_index"] = h5py.SoftLink("/0")
    refuse(store, take, path, write_lines(*LINES), "sentence_to_index is a link")


def test_file_cut_anywhere_is_refused_or_whole(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    path, texts = foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES)
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 60).astype(int).tolist():
        path.write_bytes(content[:size])
        with pytest.raises(ExchangeError) as caught:
            take(path, texts)
        assert "\n" not in str(caught.value)
    assert store.catalog.shards() == []


# The view that comes of it


def test_imported_view_is_whole_and_can_be_verified(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    take(foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES))
    report = verify_store(store)
    assert (report.shards, report.rows, report.corrupt) == (1, 5, [])


def test_text_that_was_not_imported_cannot_be_computed(
    store: FeatureStore, take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    report = take(foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES))
    known = embedcache.embed(store, report.view, [LINES[0]])
    np.testing.assert_array_equal(known[0], foreign.rows_of(LINES[0]))
    with pytest.raises(ModuleError, match=r"\(imported:elmo\): its features were imported"):
        embedcache.embed(store, report.view, ["never seen"])
    with pytest.raises(ModuleError, match="imported:elmo: names features that were imported"):
        embedcache.build(store, write_lines("x"), module="imported:elmo")


def test_imported_view_says_so_without_its_catalog(
    take: Import, write_lines: Lines, foreign: ModuleType, tmp_path: Path
) -> None:
    report = take(foreign.write_allennlp(tmp_path / "e.hdf5", LINES), write_lines(*LINES))
    for path in (tmp_path / "store").glob("catalog.sqlite*"):
        path.unlink()
    with embedcache.open_store(tmp_path / "store") as store:
        assert store.contains(report.view, LINES).all()
        with pytest.raises(ModuleError, match=r"\(imported:\?\): its features were imported"):
            embedcache.embed(store, report.view, ["never seen"])


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="format must be one of"):
        ImportOptions(format="glove")
    with pytest.raises(ValueError, match=re.escape("dtype must be one of ('float16', 'float32')")):
        ImportOptions(dtype="int8")
