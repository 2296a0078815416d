"""Build a labelled corpus from the package descriptions in this machine's apt lists.

Each row is the description of a Debian package, labelled with its archive section (``games``,
``python``, ``libs``, ...): tens of thousands of real texts in about fifty classes, with nothing to
download beyond what ``apt-get update`` fetches anyway. ::

    apt-get update -o Acquire::Languages=en
    python examples/debian_sections.py -o debian.tsv

The ``Packages`` indexes carry only the first line of a description. The full texts are in the
``Translation-en`` indexes, which container images are usually told not to fetch; the option above
asks for them. Without them the corpus is made of the short descriptions.
"""

import argparse
import bz2
import contextlib
import csv
import gzip
import lzma
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

APT_HELPER = "/usr/lib/apt/apt-helper"
FORMS = ("", ".gz", ".xz", ".bz2", ".lz4", ".zst")
STDLIB_OPENERS: dict[str, Callable[..., IO[str]]] = {
    "": open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


class ListsError(Exception):
    """The apt lists are missing or cannot be read."""


class Row(NamedTuple):
    """One line of the corpus, in the order of its columns."""

    split: str
    label: str
    text: str


@contextlib.contextmanager
def open_index(path: Path) -> Iterator[IO[str]]:
    """Open an apt index for reading, whatever it is compressed with.

    Args:
        path: A plain, ``.gz``, ``.xz`` or ``.bz2`` file; or any other form (``.lz4``, ``.zst``)
            that a program on this machine decompresses.

    Yields:
        The decompressed text.

    Raises:
        ListsError: If the file is damaged or no program here decompresses it.
    """
    form = path.suffix if path.suffix in FORMS else ""
    if form in STDLIB_OPENERS:
        try:
            with STDLIB_OPENERS[form](path, "rt", encoding="utf-8", errors="replace") as lines:
                yield lines
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise ListsError(f"cannot read {path}: {error}") from error
        return

    if form == ".lz4" and (lz4 := shutil.which("lz4")):
        command = [lz4, "-dcq", str(path)]
    elif helper := shutil.which(APT_HELPER):
        command = [helper, "cat-file", str(path)]
    else:
        raise ListsError(f"nothing here decompresses {path}: install {form[1:]} or apt")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as program:
        assert program.stdout is not None
        yield program.stdout
    if program.returncode != 0:
        raise ListsError(f"cannot read {path}: {command[0]} failed with {program.returncode}")


def find_indexes(lists: Path, kind: str) -> list[Path]:
    """List the index files of one kind, compressed or not, in the order of their names."""
    return sorted(path for form in FORMS for path in lists.glob(f"*_{kind}{form}"))


def read_stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Split deb822 text into its stanzas.

    Args:
        lines: Lines of ``Name: value`` fields. A line that begins with a space continues the field
            before it; a blank line ends the stanza.

    Yields:
        For each stanza its values by lower-case field name, continuation lines separated by
        newlines and without their leading space.
    """
    fields: dict[str, str] = {}
    name = ""
    for raw in lines:
        line = raw.rstrip()
        if not line:
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line[1:]
        else:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.lstrip()
    if fields:
        yield fields


def as_one_line(description: str) -> str:
    """Join a description's lines, dropping the lone dots that separate its paragraphs."""
    return " ".join(
        word for line in description.split("\n") if line.strip() != "." for word in line.split()
    )


def read_translations(paths: Iterable[Path]) -> dict[tuple[str, str], str]:
    """Read the full English descriptions, by package and by the description's MD5."""
    texts = {}
    for path in paths:
        with open_index(path) as lines:
            for stanza in read_stanzas(lines):
                key = stanza.get("package", ""), stanza.get("description-md5", "")
                if "description-en" in stanza:
                    texts[key] = as_one_line(stanza["description-en"])
    return texts


def read_descriptions(lists: Path) -> dict[str, str]:
    """Read every distinct package description and the section it belongs to.

    A text that packages of different sections share gets the section most of them are in (of
    equals, the first by name), so that the result does not depend on the order of the files.

    Args:
        lists: The folder with apt's index files.

    Returns:
        The section of each text, without an archive component (``contrib/utils`` is ``utils``).

    Raises:
        ListsError: If the folder has no package index, or one that cannot be read.
    """
    packages = find_indexes(lists, "Packages")
    if not packages:
        raise ListsError(f'no package lists in {lists}: run "apt-get update" first')
    translations_found = find_indexes(lists, "Translation-en")
    if not translations_found:
        print(
            f"note: no Translation-en in {lists}, so short descriptions only;"
            ' "apt-get update -o Acquire::Languages=en" fetches the full ones',
            file=sys.stderr,
        )
    translations = read_translations(translations_found)

    sections: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in packages:
        with open_index(path) as lines:
            for stanza in read_stanzas(lines):
                section = stanza.get("section", "").rpartition("/")[2]
                key = stanza.get("package", ""), stanza.get("description-md5", "")
                text = translations.get(key) or as_one_line(stanza.get("description", ""))
                if section and text:
                    sections[text][section] += 1
    return {
        text: min(counts, key=lambda section: (-counts[section], section))
        for text, counts in sections.items()
    }


def shuffle_key(text: str, purpose: bytes) -> bytes:
    """Hash a text: sorting by this shuffles, the same way on every machine."""
    return blake2b(text.encode(), digest_size=16, person=purpose).digest()


def make_rows(sections: dict[str, str], min_per_section: int) -> list[Row]:
    """Give each text its split: of every section one tenth test, one tenth dev, the rest train.

    Only the texts decide which split each is in, through their hashes, and in what order they come.

    Args:
        sections: The section of each text.
        min_per_section: Sections with fewer texts than this are left out.

    Returns:
        The corpus, with sections and splits mixed.

    Raises:
        ListsError: If no section has that many texts.
    """
    sizes = Counter(sections.values())
    if max(sizes.values(), default=0) < min_per_section:
        raise ListsError(f"no section has {min_per_section} texts: lower --min-per-section")
    ranks: Counter[str] = Counter()
    rows = []
    for text in sorted(sections, key=lambda text: shuffle_key(text, b"split")):
        label = sections[text]
        if sizes[label] < min_per_section:
            continue
        tenth = (sizes[label] + 5) // 10
        if ranks[label] < tenth:
            split = "test"
        elif ranks[label] < 2 * tenth:
            split = "dev"
        else:
            split = "train"
        ranks[label] += 1
        rows.append(Row(split, label, text))
    return sorted(rows, key=lambda row: shuffle_key(row.text, b"order"))


def write_corpus(rows: Iterable[Row], path: Path) -> None:
    """Write the corpus as tab-separated UTF-8 with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Build a labelled corpus, package description to section, from apt's lists."
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("debian.tsv"), help="file to write (%(default)s)"
    )
    parser.add_argument(
        "--lists",
        type=Path,
        default=Path("/var/lib/apt/lists"),
        help="folder with apt's index files (%(default)s)",
    )
    parser.add_argument(
        "--min-per-section",
        type=int,
        default=50,
        metavar="N",
        help="leave out sections with fewer texts than this (%(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parse_arguments(arguments)
    try:
        rows = make_rows(read_descriptions(options.lists), options.min_per_section)
        write_corpus(rows, options.output)
    except (ListsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    splits = Counter(row.split for row in rows)
    print(
        f"{options.output}: {len(rows)} texts in {len({row.label for row in rows})} sections"
        f" (train {splits['train']}, dev {splits['dev']}, test {splits['test']})",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
