"""How the tests of the corpus write a file and read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.corpus import FORMATS, CorpusOptions, CorpusReader, DocumentBatch, Source
from embedcache.errors import CorpusError


@pytest.fixture(params=FORMATS)
def file_format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file into the test's folder; gives its path."""

    def write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture(scope="session")
def read() -> Callable[..., DocumentBatch]:
    """Reads all documents of one file as one batch; keywords are the options."""
    return _read


@pytest.fixture(scope="session")
def error_of() -> Callable[..., str]:
    """The one line that reading a file fails with, less the folder of the file."""
    return _error_of


def _read(
    path: str, *, split: str | None = None, block: int = 1 << 20, size: int = 4096, **options
):
    reader = CorpusReader(
        [Source(path, split)],
        CorpusOptions(**options),
        batch_documents=size,
        _block_bytes=block,
    )
    batches = list(reader)

    def joined(name: str):
        columns = [getattr(batch, name) for batch in batches]
        if all(column is None for column in columns):
            return None
        return [value for column in columns for value in column]

    names = ("texts", "labels", "splits", "ids", "lines")
    return DocumentBatch(Source(path, split), *map(joined, names))


def _error_of(path: str, **options) -> str:
    with pytest.raises(CorpusError) as caught:
        _read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message.removeprefix(str(Path(path).parent) + os.sep)
