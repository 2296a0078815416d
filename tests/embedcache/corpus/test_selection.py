"""Some documents of a corpus, by their places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from embedcache.corpus import CorpusOptions, CorpusReader, parse_sources
from embedcache.corpus.selection import choose_documents
from embedcache.errors import CorpusError

TABLE = "label\ttext\tsplit\tid\nx\tone\ttrain\ta\ny\ttwo\tdev\tb\nx\tthree\ttrain\tc\n"


def test_documents_are_chosen_with_all_that_belongs_to_them(write: Callable[..., str]) -> None:
    sources = parse_sources([write("a.tsv", TABLE), write("b.tsv", TABLE)])
    reader = CorpusReader(sources, CorpusOptions(id_field="id"))
    first, second = choose_documents(reader, np.array([1, 3, 5]))
    assert (first.texts, first.labels, first.splits, first.ids) == (
        [b"two"], [("y",)], ["dev"], ["b"],
    )  # fmt: skip
    assert list(first.lines) == [3]
    assert (second.texts, second.ids, list(second.lines)) == (
        [b"one", b"three"],
        ["a", "c"],
        [2, 4],
    )
    assert second.source.path.endswith("b.tsv")


def test_what_a_file_does_not_carry_stays_away(write: Callable[..., str]) -> None:
    (batch,) = choose_documents(CorpusReader(parse_sources([write("a.txt", "one\ntwo\n")])),
                                np.array([1]))  # fmt: skip
    assert (batch.texts, batch.labels, batch.splits, batch.ids) == ([b"two"], None, None, None)


@pytest.mark.parametrize("places", [[], [2, 9]])
def test_files_of_which_nothing_is_chosen_are_left_out(
    write: Callable[..., str], places: list[int]
) -> None:
    reader = CorpusReader(parse_sources([write("a.txt", "one\ntwo\n")]))
    assert list(choose_documents(reader, np.array(places, np.int64))) == []


def test_a_bad_line_is_an_error_wherever_it_stands(write: Callable[..., str]) -> None:
    reader = CorpusReader(parse_sources([write("a.tsv", TABLE + "only one cell\n")]))
    with pytest.raises(CorpusError, match=r"a\.tsv:5: the row has 1 field"):
        list(choose_documents(reader, np.array([0])))


@pytest.mark.parametrize("places", [[1, 0], [1, 1], [-1, 0]])
def test_places_that_do_not_ascend_are_refused(
    write: Callable[..., str], places: list[int]
) -> None:
    reader = CorpusReader(parse_sources([write("a.txt", "one\ntwo\n")]))
    with pytest.raises(ValueError, match="strictly ascending"):
        list(choose_documents(reader, np.array(places)))
