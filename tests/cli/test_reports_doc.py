"""What ``docs/reports.md`` tells people to type can be typed."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import cli

CommandLine = Any
Built = Any
DOCUMENT = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
LINES = [
    line.strip() for line in re.findall(r"^ {4}.*embedcache (?:runs|predict).*$", DOCUMENT, re.M)
]
BLOCKS = [
    textwrap.dedent(found)
    for found in re.findall(r"(?:^(?: {4}.*)?\n)+", DOCUMENT, re.M)
    if "import cnn" in found
]


def words_of(line: str) -> list[str]:
    """The words of the embedcache of a line, which may have a pipe before and a file behind it."""
    command = line.split("|")[-1].split(">")[0]
    return shlex.split(command)[1:]


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_of_the_document_is_parsed(line: str) -> None:
    words = words_of(line)
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert name is not None
        assert found is not None
        command = found
    command.make_context("embedcache", words)


def test_the_document_has_lines_for_both_commands() -> None:
    assert sum(line.startswith("embedcache runs report") for line in LINES) >= 4
    assert sum("embedcache predict" in line for line in LINES) >= 3


def test_reports_and_predictions_of_the_document_are_made(
    ec: CommandLine, built: Built, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in ("reviews.csv", "export.csv"):
        (tmp_path / name).write_text("body\na paper jam\n", encoding="utf-8")
    for name in ("test.tsv", "dev.tsv"):
        (tmp_path / "corpus" / name).write_text("text\na paper jam\n", encoding="utf-8")
    for line in LINES:
        words = [built.train["run"] if word.startswith("2026") else word for word in words_of(line)]
        ec.ok(copied, *words, stdin=b"a paper jam\n")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "compared.html", "labelled.csv"} <= names


def test_python_of_the_document_runs(
    built: Built, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied.rename(tmp_path / "features")
    page, explained = BLOCKS
    exec(compile(page, "reports.md", "exec"), {})
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    names: dict[str, Any] = {}
    exec(compile(explained, "reports.md", "exec"), names)
    assert len(names["explanation"].labels[0].windows) == 5
