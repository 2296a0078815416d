"""Raw texts, which no store keeps, from the files that a corpus was built from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from embedcache.corpus import CorpusOptions, CorpusReader, Source
from embedcache.corpus.messages import STDIN
from embedcache.errors import CorpusError
from embedcache.keys import keys_of_utf8
from embedcache.store.database.records import DatasetRecord


@dataclass(frozen=True, slots=True)
class FoundTexts:
    """The texts of some keys.

    Attributes:
        texts: By key. A text whose key is right is right: a key is the hash of its bytes.
        problems: Why files could not be read, a line each.
    """

    texts: Mapping[bytes, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def find_texts(
    keys: Iterable[bytes], sources: Sequence[Source], options: CorpusOptions | None = None
) -> FoundTexts:
    """Read files until the text of every key is found, or all are read.

    A file that is gone, or cannot be read any more, is passed over and told of.

    Args:
        keys: 16 bytes each.
        sources: The files; standard input is passed over: it was read once.
        options: How to read them.
    """
    left = set(keys)
    texts: dict[bytes, str] = {}
    problems: list[str] = []
    for source in sources:
        if not left:
            break
        if source.path == STDIN:
            problems.append("standard input, which the corpus came from, cannot be read again")
            continue
        try:
            # The split does not matter here, and a field of the file may name it.
            for batch in CorpusReader([Source(source.path, None)], options or CorpusOptions()):
                for key, text in zip(map(bytes, keys_of_utf8(batch.texts)), batch.texts,
                                     strict=True):  # fmt: skip
                    if key in left:
                        left.remove(key)
                        texts[key] = text.decode()
                if not left:
                    break
        except CorpusError as error:
            problems.append(str(error))
    return FoundTexts(texts, tuple(problems))


def sources_of_record(record: DatasetRecord) -> list[Source]:
    """The files that a dataset was built from, as the catalog remembers them."""
    return [Source(str(source["path"]), None) for source in record.sources if source.get("path")]
