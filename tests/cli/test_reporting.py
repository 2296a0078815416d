"""`runs report`: one page, written whole or not at all."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

CommandLine = Any
Built = Any


@pytest.fixture(scope="module")
def checks() -> Any:
    path = Path(__file__).parents[1] / "cnn" / "report" / "html_checks.py"
    spec = importlib.util.spec_from_file_location("html_checks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_the_last_run_is_written(
    ec: CommandLine, built: Built, tmp_path: Path, checks: Any
) -> None:
    out = tmp_path / "report.html"
    line = ec.ok(built.store, "runs", "report", "last", "-o", out)
    page = checks.require_whole_page(out.read_text(encoding="utf-8"))
    assert built.train["run"] in page.words
    assert line.startswith("1 run, ")
    assert line.rstrip().endswith(f"kB in {out}")
    assert sum(text in page.words for text in built.texts) >= page.elements["article"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_json_says_what_is_on_the_page(ec: CommandLine, built: Built, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    record = ec.json(built.store, "runs", "report", "last", "-o", out, "--errors", "3")
    assert record == {
        "path": str(out), "bytes": out.stat().st_size, "runs": [built.train["run"]], "errors": 3,
        "texts": 3, "problems": [],
    }  # fmt: skip


def test_texts_that_moved_are_told_and_can_be_given(
    ec: CommandLine, built: Built, copied: Path, tmp_path: Path
) -> None:
    corpus, out = tmp_path / "moved.txt", tmp_path / "report.html"
    arguments = ("runs", "report", "last", "-o", out, "--errors", "4")
    shutil.move(built.corpus, corpus)
    try:
        done = ec(copied, *arguments)
        assert done.returncode == 0
        (note,) = done.stderr.splitlines()
        assert note.startswith(f"note: {built.corpus}: ")
        assert "--texts PATH" in out.read_text(encoding="utf-8")
        assert ec.json(copied, *arguments, "--texts", corpus)["texts"] == 4
        (tmp_path / "a.csv").write_text(
            "body\n" + "".join(f'"{text}"\n' for text in built.texts if '"' not in text)
        )
        given = ("--texts", tmp_path / "a.csv", "--text-field", "body", "--texts-format", "csv")
        assert ec.json(copied, *arguments, *given)["texts"] > 0
    finally:
        shutil.move(corpus, built.corpus)


@pytest.mark.parametrize(
    ("runs", "words"), [(("nope",), "no run 'nope'"), (("last", "nope"), "no run 'nope'")]
)
def test_unknown_run_is_refused_and_the_page_is_not_touched(
    ec: CommandLine, built: Built, tmp_path: Path, runs: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "report.html"
    out.write_text("before", encoding="utf-8")
    assert words in ec.error(built.store, "runs", "report", *runs, "-o", out)
    assert out.read_text(encoding="utf-8") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_folder_that_is_missing_is_one_line(ec: CommandLine, built: Built, tmp_path: Path) -> None:
    line = ec.error(built.store, "runs", "report", "last", "-o", tmp_path / "no" / "a.html")
    assert "there is no folder" in line


def test_runs_are_compared_side_by_side(
    ec: CommandLine, copied: Path, tmp_path: Path, checks: Any
) -> None:
    ec.json(copied, "train", "--preset", "basic", "--epochs", "1", "--seed", "3")
    out = tmp_path / "report.html"
    names = [record["run"] for record in ec.json(copied, "runs", "list")["runs"]]
    ec.ok(copied, "runs", "report", *names, "-o", out)
    page = checks.require_whole_page(out.read_text(encoding="utf-8"))
    assert "What differs" in page.words
    assert page.elements["section"] == 2
