"""Raw texts are found again by their keys, or it is told why not."""

from __future__ import annotations

import gzip
from pathlib import Path

from cnn.report.texts import find_texts, sources_of_record
from embedcache.corpus import CorpusOptions, Source
from embedcache.keys import key_of_text
from embedcache.store.database.records import DatasetRecord

WANTED = ["a fine film", "naïve ☂", "  spaces  "]
KEYS = [key_of_text(text) for text in WANTED]


def test_texts_are_found_in_any_file_that_build_reads(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label\ttext\ngood\ta fine film\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("other\nnaïve ☂\n  spaces  \n")
    sources = [Source(str(tmp_path / name), None) for name in ("a.tsv", "b.txt.gz")]
    found = find_texts(KEYS, sources)
    assert found.texts == dict(zip(KEYS, WANTED, strict=True))
    assert found.problems == ()


def test_a_text_that_has_changed_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a fine film!\nspaces\n", encoding="utf-8")
    assert find_texts(KEYS, [Source(str(tmp_path / "a.txt"), None)]).texts == {}


def test_files_that_cannot_be_read_are_told_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    (tmp_path / "good.txt").write_text("a fine film\n", encoding="utf-8")
    names = ("gone.txt", "bad.txt", "good.txt")
    sources = [Source("-", None), *(Source(str(tmp_path / name), None) for name in names)]
    found = find_texts(KEYS, sources)
    assert found.texts == {KEYS[0]: WANTED[0]}
    assert len(found.problems) == 3
    for problem, words in zip(
        found.problems, ("standard input", "gone.txt", "invalid UTF-8"), strict=True
    ):
        assert words in problem
        assert "\n" not in problem


def test_reading_ends_when_every_text_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(WANTED) + "\n", encoding="utf-8")
    gone = Source(str(tmp_path / "gone.txt"), None)
    found = find_texts(KEYS, [Source(str(tmp_path / "a.txt"), None), gone])
    assert len(found.texts) == 3
    assert found.problems == ()


def test_no_keys_need_no_files(tmp_path: Path) -> None:
    assert find_texts([], [Source(str(tmp_path / "gone.txt"), None)]).problems == ()


def test_options_say_how_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body\na fine film\n", encoding="utf-8")
    source = Source(str(tmp_path / "a.csv"), None)
    assert "--text-field" in find_texts(KEYS, [source]).problems[0]
    options = CorpusOptions(text_field="body")
    assert set(find_texts(KEYS, [source], options).texts) == {KEYS[0]}


def test_files_of_a_dataset_are_those_that_the_catalog_remembers() -> None:
    sources = [{"path": "a.txt", "split": "train", "digest": "x"}, {"path": "-", "split": None}]
    record = DatasetRecord("d", "v", 2, 2, sources, 0.0)
    assert sources_of_record(record) == [Source("a.txt", None), Source("-", None)]
