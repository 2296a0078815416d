"""The options that make up a feature view, declared once; and how its fields are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

VIEW_SETTINGS = (
    "granularity",
    "layer",
    "keep_special_tokens",
    "context_words",
    "max_tokens",
    "overflow",
    "dtype",
)
"""Names of the fields of `ViewSettings`."""
VIEW_OPTIONS = ("module", "preprocess", *VIEW_SETTINGS)
"""Names under which a command gets what `view_options` adds."""

_OPTIONS = (
    click.option("--module", default="builtin:en-words-128", show_default=True, metavar="HANDLE",
                 help="A SavedModel's folder or .tar.gz, a TF Hub or Kaggle URL, or builtin:NAME."),
    click.option("--preprocess", metavar="HANDLE", help="The preprocessor of an encoder of word"
                 " pieces.  [default: the one known for it]"),
    click.option("--granularity", type=click.Choice(["token", "sentence", "window"]),
                 help="What a row stands for, where the module gives a vector a text."
                 "  [default: by module]"),
    click.option("--layer", metavar="L[,L...]|mean|all", help="Layers that make a row: a number, a"
                 " name, several side by side, their mean, or all kept apart for the trainer to"
                 " mix.  [default: the module's output]"),
    click.option("--keep-special-tokens", is_flag=True,
                 help="Keep the rows of special tokens such as [CLS]."),
    click.option("--context-words", type=click.IntRange(0), metavar="N",
                 help="With --granularity window: words on either side.  [default: 2]"),
    click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True,
                 help="Rows kept of a text at most."),
    click.option("--overflow", type=click.Choice(["truncate", "error", "window"]),
                 default="truncate", show_default=True, help="What to do with a longer text: cut"
                 " it, stop, or stitch overlapping windows of so many tokens."),
    click.option("--dtype", type=click.Choice(["float16", "float32", "bfloat16", "int8"]),
                 default="float16", show_default=True, help="Numbers in the store; int8 with a"
                 " scale for each row."),
)  # fmt: skip


def view_options(function: _Function) -> _Function:
    """Give a command the options of a view; it gets them as keyword arguments."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def shown_value(value: str | int | bool) -> str:
    """A field's value; digests are shortened, and what is empty is seen."""
    shown = str(value)
    is_digest = len(shown) == 32 and not set(shown) - set("0123456789abcdef")
    return shown[:12] if is_digest else shown or '""'
