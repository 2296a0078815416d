"""How a corpus is read: the options of `build`, for the commands that read one too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from embedcache.corpus import CorpusOptions

FORMATS = ("txt", "fasttext", "csv", "tsv", "tsv-raw", "jsonl")

_FIELDS = (
    "text_field", "label_field", "split_field", "id_field", "encoding_errors", "max_text_bytes",
)  # fmt: skip
_OPTIONS = (
    click.option(
        "--text-field",
        metavar="FIELD",
        help="Column or JSON field of the text.  [default: text, else sentence]",
    ),
    click.option("--label-field", metavar="FIELD", help="That of the label.  [default: label]"),
    click.option("--split-field", metavar="FIELD", help="That of the split.  [default: split]"),
    click.option("--id-field", metavar="FIELD", help="That of the document's own id."),
    click.option(
        "--encoding-errors",
        type=click.Choice(["strict", "replace"]),
        default="strict",
        show_default=True,
        help="What to do with bytes that are not UTF-8.",
    ),
    click.option(
        "--max-text-bytes",
        type=click.IntRange(1, (1 << 31) - 1),
        default=1 << 20,
        show_default=True,
        help="Longest line or text that is read.",
    ),
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def corpus_options(*, format_option: str = "--format") -> Callable[[_Command], _Command]:
    """Give a command the options that tell how a corpus is read.

    Args:
        format_option: The name of the one for the files' format.
    """
    choice = click.option(
        format_option,
        "corpus_format",
        type=click.Choice(FORMATS),
        help="Format of the text files.  [default: by name, then by content]",
    )

    def decorate(command: _Command) -> _Command:
        for option in (*reversed(_OPTIONS), choice):
            command = option(command)
        return command

    return decorate


def read_options(settings: Mapping[str, Any]) -> CorpusOptions:
    """What those options say."""
    from embedcache.corpus import CorpusOptions

    return CorpusOptions(
        format=settings["corpus_format"], **{name: settings[name] for name in _FIELDS}
    )
