"""The wording of what is wrong with a corpus: one line, with the file and its line."""

from __future__ import annotations

from collections.abc import Sequence

from embedcache.errors import CorpusError

STDIN = "-"
"""The path that stands for standard input."""


def corpus_error(path: str, line: int | None, reason: str, advice: str) -> CorpusError:
    """The error of one line: ``file:line: reason; what to do next``."""
    place = "<stdin>" if path == STDIN else path if path.isprintable() else ascii(path)
    return CorpusError(f"{place}{'' if line is None else f':{line}'}: {reason}; {advice}")


def quoted(name: str) -> str:
    """A name from a file or a command line, on one line and not too long."""
    return repr(name if len(name) <= 60 else name[:57] + "...")


def listed(names: Sequence[str]) -> str:
    """Names as `quoted` gives them, but not hundreds."""
    shown = ", ".join(map(quoted, names[:20]))
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def text_of_error(error: Exception) -> str:
    """The reason of a foreign error as one line without its path."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())
