"""`predict`: texts from anywhere, in blocks, in each format, with reasons."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import cli.prediction_inputs
from cli.prediction_formats import Labelled, csv_header, csv_lines, one_line, text_lines
from cli.prediction_inputs import Notes, cut_blocks
from cnn.explaining import explain_texts
from cnn.run import Prediction, load_run
from embedcache.store.store import open_store

CommandLine = Any
Built = Any
NASTY = 'He said "no, never"; =1+1, ☂'


@pytest.fixture
def file(built: Built, tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(built.texts[:30]) + "\n", encoding="utf-8")
    return path


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_file_and_standard_input_are_labelled_alike(
    ec: CommandLine, built: Built, file: Path
) -> None:
    named = ec.ok(built.store, "predict", "last", *built.texts[:30])
    assert ec.ok(built.store, "predict", "last", "--file", file) == named
    assert ec.ok(built.store, "predict", "last", "--file", "-", stdin=file.read_bytes()) == named
    assert ec.ok(built.store, "predict", "last", stdin=file.read_bytes()) == named
    assert len(named.splitlines()) == 30


def test_blocks_change_nothing_and_keep_the_order(
    ec: CommandLine, built: Built, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ec.json(built.store, "predict", "last", "--file", file)["predictions"]
    monkeypatch.setattr(cli.prediction_inputs, "_MAX_BLOCK_TEXTS", 7)
    rows = records(ec.ok(built.store, "predict", "last", "--file", file, "--format", "jsonl"))
    assert [row["text"] for row in rows] == built.texts[:30]
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_blocks_are_bounded_by_texts_and_by_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.prediction_inputs, "_MAX_BLOCK_TEXTS", 4)
    assert [len(block) for block in cut_blocks(map(str, range(10)), row_bytes=256)] == [4, 4, 2]
    monkeypatch.setattr(cli.prediction_inputs, "_MAX_BLOCK_BYTES", 1000)
    texts = ["x" * 40] * 5
    assert [len(block) for block in cut_blocks(texts, row_bytes=50)] == [2, 2, 1]
    assert [len(block) for block in cut_blocks(texts, row_bytes=10**6)] == [1] * 5
    assert list(cut_blocks([], row_bytes=1)) == []


def test_texts_are_read_as_they_are_needed() -> None:
    given = iter(["a"] * (1 << 20))
    next(cut_blocks(given, row_bytes=256))
    assert sum(1 for _ in given) >= (1 << 20) - (1 << 13)


def test_columns_and_fields_of_files_are_read_as_build_does(
    ec: CommandLine, built: Built, tmp_path: Path
) -> None:
    named = ec.ok(built.store, "predict", "last", built.texts[0])
    (tmp_path / "a.csv").write_text(f'id,body\n1,"{built.texts[0]}"\n', encoding="utf-8")
    arguments = ("predict", "last", "--file", tmp_path / "a.csv")
    assert ec.ok(built.store, *arguments, "--text-field", "body") == named
    assert "--text-field" in ec.error(built.store, *arguments)
    (tmp_path / "b.data").write_text(json.dumps({"text": built.texts[0]}) + "\n", encoding="utf-8")
    arguments = ("predict", "last", "--file", tmp_path / "b.data", "--file-format", "jsonl")
    assert ec.ok(built.store, *arguments) == named


def test_jsonl_has_an_object_a_text_as_json_has(ec: CommandLine, built: Built) -> None:
    texts = built.texts[:3]
    rows = records(ec.ok(built.store, "predict", "last", *texts, "--format", "jsonl"))
    assert rows == ec.json(built.store, "predict", "last", *texts)["predictions"]


def test_csv_is_a_table_with_every_probability(ec: CommandLine, copied: Path, built: Built) -> None:
    texts = [NASTY, built.texts[0]]
    output = ec.ok(copied, "predict", "last", *texts, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["text"] for row in rows] == texts
    labels = sorted(set(built.labels))
    assert list(rows[0]) == ["text", "label", "probability", *(f"p_{label}" for label in labels)]
    for row in rows:
        assert float(row[f"p_{row['label']}"]) == float(row["probability"])
        assert sum(float(row[f"p_{label}"]) for label in labels) == pytest.approx(1, abs=1e-4)


def test_csv_has_one_header_for_all_blocks(
    ec: CommandLine, built: Built, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.prediction_inputs, "_MAX_BLOCK_TEXTS", 10)
    output = ec.ok(built.store, "predict", "last", "--file", file, "--format", "csv")
    assert output.count("text,label") == 1
    assert len(list(csv.reader(io.StringIO(output)))) == 31


def test_output_file_holds_what_would_be_printed(
    ec: CommandLine, built: Built, file: Path, tmp_path: Path
) -> None:
    arguments = ("predict", "last", "--file", file, "--format", "csv")
    printed = ec.ok(built.store, *arguments)
    assert ec.ok(built.store, *arguments, "-o", tmp_path / "out.csv") == ""
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == printed


def test_output_file_is_not_touched_if_a_text_cannot_be_read(
    ec: CommandLine, built: Built, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\n")
    out = tmp_path / "out.txt"
    out.write_text("before", encoding="utf-8")
    out.chmod(0o640)
    arguments = ("predict", "last", "--file", tmp_path / "bad.txt", "-o", out)
    line = ec.error(built.store, *arguments)
    assert "bad.txt:2: invalid UTF-8" in line
    assert out.read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "out.txt"]
    ec.ok(built.store, "predict", "last", built.texts[0], "-o", out)
    assert out.read_text(encoding="utf-8").endswith(f"\t{built.texts[0]}\n")
    assert out.stat().st_mode & 0o777 == 0o640


def test_place_that_cannot_be_written_is_one_line(
    ec: CommandLine, built: Built, tmp_path: Path
) -> None:
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "a", "there is no folder")):
        line = ec.error(built.store, "predict", "last", built.texts[0], "-o", place)
        assert str(place) in line
        assert words in line


def test_bytes_that_are_not_utf8_may_be_replaced(
    ec: CommandLine, copied: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"a printer \xff\n")
    arguments = ("predict", "last", "--file", tmp_path / "bad.txt")
    assert "--encoding-errors replace" in ec.error(copied, *arguments)
    assert "a printer \ufffd" in ec.ok(copied, *arguments, "--encoding-errors", "replace")


def test_line_that_is_too_long_is_refused(ec: CommandLine, built: Built) -> None:
    arguments = ("predict", "last", "--max-text-bytes", "10")
    line = ec.error(built.store, *arguments, stdin=b"short\n" + b"x" * 11 + b"\n")
    assert "<stdin>:2" in line
    assert "--max-text-bytes" in line


def test_empty_and_cut_texts_are_told_in_one_line_each(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    done = ec(copied, "predict", "last", built.texts[0], "", "word " * 600, " ")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr.splitlines() == [
        "note: 2 of 4 texts are without a token: labelled by the model's bias alone (the first:"
        " text 2)",
        "note: 1 of 4 texts is longer than 512 tokens: what comes after them was not read (the"
        " first: text 3)",
    ]


def test_notes_count_over_blocks() -> None:
    notes = Notes()
    notes.add([3, 1], [False, False])
    notes.add([9, 0], [True, False])
    notes.add([9], [True])
    assert notes.lines(max_tokens=9) == [
        "note: 2 of 5 texts are longer than 9 tokens: what comes after them was not read (the"
        " first: text 3)",
        "note: 1 of 5 texts is without a token: labelled by the model's bias alone (the first:"
        " text 4)",
    ]
    assert Notes().lines(max_tokens=9) == []


def test_explained_text_has_the_words_that_decided(ec: CommandLine, built: Built) -> None:
    text = built.texts[0]
    first, second, *windows = ec.ok(built.store, "predict", "last", text, "--explain").splitlines()
    label, _, shown = first.split("\t")
    assert shown == text
    assert re.fullmatch(
        rf" +{label}: logit [+-]\d+\.\d\d, of it [+-]\d+\.\d\d without a word", second
    )
    assert 1 < len(windows) <= 11
    for window in windows[:10]:
        found = re.fullmatch(r" +[+-]\d+\.\d\d  (.+)  \(\d+ filters? of width 3\)", window)
        assert found is not None
        assert found[1].rstrip("…") in text


def test_explanations_are_fields_of_jsonl(ec: CommandLine, built: Built) -> None:
    texts = built.texts[:2]
    arguments = ("predict", "last", *texts, "--explain", "--format", "jsonl")
    rows = records(ec.ok(built.store, *arguments))
    with open_store(built.store) as store:
        explanations = explain_texts(load_run(store, "last"), texts)
    for row, explanation in zip(rows, explanations, strict=True):
        (label,) = row["explanation"]
        assert label["label"] == row["label"]
        assert label["logit"] == pytest.approx(explanation.labels[0].logit, abs=1e-4)
        parts = [window["contribution"] for window in label["windows"]]
        total = sum(parts) + label["rest"] + label["bias"]
        assert total == pytest.approx(label["logit"], abs=1e-6)
        for window in label["windows"]:
            assert window["text"] == row["text"][slice(*window["span"])]


def test_words_are_coloured_on_a_terminal_only(built: Built) -> None:
    with open_store(built.store) as store:
        run = load_run(store, "last")
        (explanation,) = explain_texts(run, built.texts[:1])
        (prediction,) = run.predict(built.texts[:1])
    labelled = Labelled(built.texts[0], prediction, explanation, is_multilabel=False)
    coloured = text_lines([labelled])
    assert "\x1b[32m" in coloured
    assert "\x1b[31m" in coloured
    plain = re.sub("\x1b\\[[0-9;]*m", "", coloured)
    assert plain.splitlines()[0].split("\t")[2] == built.texts[0]


def test_text_that_would_move_the_cursor_is_made_harmless(ec: CommandLine, copied: Path) -> None:
    output = ec.ok(copied, "predict", "last", "red \x1b[31m alert\r\nnext\tcolumn")
    assert output.split("\t")[2:] == ["red \ufffd[31m alert  next column\n"]
    assert one_line("a\x9bb\x00") == "a\ufffdb\ufffd"


def test_multilabel_texts_have_any_number_of_labels() -> None:
    both = Prediction("a", 0.9, {"a": 0.9, "b": 0.6, "c": 0.1}, ("a", "b"))
    none = Prediction("c", 0.4, {"a": 0.1, "b": 0.2, "c": 0.4}, ())
    block = [
        Labelled("one", both, None, is_multilabel=True),
        Labelled("two", none, None, is_multilabel=True),
    ]
    assert text_lines(block) == "a, b\t90.0 %, 60.0 %\tone\n-\t40.0 %\ttwo\n"
    rows = list(csv.DictReader(io.StringIO(csv_header("abc") + csv_lines(block))))
    assert [row["label"] for row in rows] == ["a|b", ""]
    assert [each.to_record()["labels"] for each in block] == [["a", "b"], []]
    assert block[1].to_record()["label"] == "c"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("text", "--file", "a.txt"), "not both"),
        (("text", "--text-field", "body"), "--file"),
        (("text", "--file-format", "csv"), "--file"),
        (("text", "--json", "--format", "csv"), "--json"),
        (("text", "--explain", "--format", "csv"), "--format jsonl"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    ec: CommandLine, built: Built, arguments: tuple[str, ...], words: str
) -> None:
    done = ec(built.store, "predict", "last", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_file_that_is_missing_is_one_line(ec: CommandLine, built: Built, tmp_path: Path) -> None:
    line = ec.error(built.store, "predict", "last", "--file", tmp_path / "no.txt")
    assert "no.txt" in line
