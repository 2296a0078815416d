"""The example corpus and the script that builds a larger one."""

import csv
import gzip
import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PACKAGES = """\
Package: abacus
Section: contrib/utils
Description: counts beads
Description-md5: {abacus}
Tag: role::program,
 use::counting

Package: lute
Section: sound
Description: plucks "strings"
Description-md5: {lute}

Package: lute-data
Section: sound
Description: no translation of this one
Description-md5: {abacus}
"""
MORE_PACKAGES = """\
Package: abacus
Section: utils
Description: counts beads
Description-md5: {abacus}

Package: third-party
Section: non-free/net
Description: keeps its long text
 in the index itself.
"""
TRANSLATION = """\
Package: abacus
Description-md5: {abacus}
Description-en: counts beads
 An abacus counts beads
   *  and caf\u00e9s.
 .
 Second paragraph.

Package: lute
Description-md5: {stale}
Description-en: plucks strings, in an older version
"""
MD5 = {name: hashlib.md5(name.encode()).hexdigest() for name in ("abacus", "lute", "stale")}


def build(lists: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "debian_sections.py", "--lists", lists, "-o", output]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, dialect="excel-tab"))


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    (folder / "partial").mkdir(parents=True)
    (folder / "a_main_Packages").write_text(PACKAGES.format(**MD5))
    (folder / "a_main_InRelease").write_text("Package: signed\nSection: no\nDescription: no\n")
    with gzip.open(folder / "b_main_Packages.gz", "wt") as file:
        file.write(MORE_PACKAGES.format(**MD5))
    with gzip.open(folder / "a_main_Translation-en.gz", "wt", encoding="utf-8") as file:
        file.write(TRANSLATION.format(**MD5))
    return folder


def test_helpdesk_lines_are_labelled_and_distinct() -> None:
    data = (EXAMPLES / "helpdesk.txt").read_bytes()
    assert data.endswith(b"\n")
    lines = data.decode("utf-8").removesuffix("\n").split("\n")
    assert len(lines) >= 600
    matches = [re.fullmatch(r"__label__([a-z]+) (\S(?:.*\S)?)", line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if match is None] == []
    texts = [re.sub(r"\W+", " ", match[2]).casefold() for match in matches if match]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_helpdesk_has_six_well_filled_classes() -> None:
    lines = (EXAMPLES / "helpdesk.txt").read_text(encoding="utf-8").splitlines()
    counts = Counter(line.split()[0].removeprefix("__label__") for line in lines)
    assert set(counts) == {"access", "billing", "hardware", "network", "shipping", "software"}
    assert min(counts.values()) >= 80


def test_debian_sections_writes_one_row_per_distinct_text(lists: Path, tmp_path: Path) -> None:
    result = build(lists, tmp_path / "out.tsv", "--min-per-section", "1")
    assert result.returncode == 0, result.stderr
    assert "4 texts in 3 sections" in result.stderr
    header, *rows = read_rows(tmp_path / "out.tsv")
    assert header == ["split", "label", "text"]
    assert sorted(rows) == [
        ["train", "net", "keeps its long text in the index itself."],
        ["train", "sound", "no translation of this one"],
        ["train", "sound", 'plucks "strings"'],
        [
            "train",
            "utils",
            "counts beads An abacus counts beads * and caf\u00e9s. Second paragraph.",
        ],
    ]


def test_debian_sections_splits_each_section_the_same_way_every_time(tmp_path: Path) -> None:
    stanzas = [
        f"Package: p{number}\nSection: {section}\nDescription: {section} text {number}\n"
        for section, size in (("games", 20), ("web", 10), ("rare", 4))
        for number in range(size)
    ]
    for name, order in (("one", stanzas), ("two", stanzas[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x_Packages").write_text("\n".join(order))
        result = build(tmp_path / name, tmp_path / f"{name}.tsv", "--min-per-section", "5")
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "one.tsv").read_bytes() == (tmp_path / "two.tsv").read_bytes()
    assert Counter((label, split) for split, label, _ in read_rows(tmp_path / "one.tsv")[1:]) == {
        ("games", "train"): 16,
        ("games", "dev"): 2,
        ("games", "test"): 2,
        ("web", "train"): 8,
        ("web", "dev"): 1,
        ("web", "test"): 1,
    }


def test_debian_sections_says_in_one_line_that_there_are_no_lists(tmp_path: Path) -> None:
    result = build(tmp_path, tmp_path / "out.tsv")
    assert result.returncode == 1
    assert re.fullmatch(r"error: no package lists in .*apt-get update.*\n", result.stderr)
    assert not (tmp_path / "out.tsv").exists()
