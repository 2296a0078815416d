"""In what two views differ, and which options of `build` make one of the other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

from embedcache.modules.settings import CONTEXT_WORDS_DEFAULT
from embedcache.store.database.records import ViewRecord
from embedcache.view import FeatureView

_WITHOUT = "without "
_OPTIONS = {
    "granularity": "--granularity",
    "context_words": "--context-words",
    "output": "--layer",
    "max_tokens": "--max-tokens",
    "overflow": "--overflow",
    "dtype": "--dtype",
}
"""Field of a view → the option that sets it to a value."""
_OF_THE_MODULE = ("signature", "output", "tokenizer", "dim", "num_layers", "preprocess_digest")
_CAUSES = {
    "context_words": ("granularity",),
    "tokenizer": ("granularity",),
    "dim": ("output",),
    "num_layers": ("output",),
    "overlap_tokens": ("overflow", "max_tokens"),
}
"""Field that no option sets → fields that it follows from."""


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A field in which the view that holds a text is not the one asked for.

    Attributes:
        field: Its name in `FeatureView`.
        stored: Its value in the view that holds the text.
        asked: Its value in the view asked for.
        option: What to give to `build` for the stored value: ``"--max-tokens 256"``, or
            ``"without --keep-special-tokens"``; None where no option makes it so.
        follows: The differing field that this one follows from; empty: it stands alone.
        note: Why there is no option, or what the difference means, in a few words; or empty.
    """

    field: str
    stored: str | int | bool
    asked: str | int | bool
    option: str | None
    follows: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class OtherView:
    """A view that holds a text, though not the one asked for.

    Attributes:
        view: Its fingerprint.
        module: Its module's handle; empty if that was lost with the catalog.
        differences: The fields that differ, in the order of `FeatureView`.
    """

    view: str
    module: str
    differences: tuple[FieldDifference, ...]

    @property
    def options(self) -> str | None:
        """The options that turn a build as it was asked for into one of this view.

        None where there are none: it is another module, or the same with other files.
        """
        wanted = [found for found in self.differences if not found.follows]
        options = [found.option for found in wanted if found.option is not None]
        is_other_module = any(found.field == "module_digest" for found in wanted)
        if is_other_module or len(options) < len(wanted):
            return None
        return " ".join(sorted(options, key=lambda option: option.startswith(_WITHOUT)))


def view_differences(stored: ViewRecord, asked: ViewRecord) -> tuple[FieldDifference, ...]:
    """The fields in which a stored view is not the one asked for, and what would make it so."""
    changed = [
        field.name
        for field in fields(FeatureView)
        if getattr(stored.view, field.name) != getattr(asked.view, field.name)
    ]
    return tuple(_difference(name, changed, stored, asked) for name in changed)


def _difference(
    name: str, changed: Sequence[str], stored: ViewRecord, asked: ViewRecord
) -> FieldDifference:
    value, wanted = getattr(stored.view, name), getattr(asked.view, name)
    option, note = None, ""
    follows = _cause(name, changed, stored.view, asked.view)
    if follows:
        note = f"follows from {follows}"
    elif name == "module_digest":
        option, note = _of_files("module", stored.handle, asked.handle)
    elif name == "preprocess_digest":
        option, note = _of_files("preprocess", stored.preprocess, asked.preprocess)
    elif name == "keep_special_tokens":
        option = f"{'' if value else _WITHOUT}--keep-special-tokens"
    elif name == "context_words" and stored.view.granularity != "window":
        option = f"{_WITHOUT}--context-words"
    elif name in _OPTIONS and value != "":
        option = f"{_OPTIONS[name]} {shlex.quote(str(value))}"
    else:
        note = "another version of embedcache made it"
    return FieldDifference(name, value, wanted, option, follows, note)


def _cause(name: str, changed: Sequence[str], stored: FeatureView, asked: FeatureView) -> str:
    """The differing field that a field follows from; empty: it stands alone."""
    if "module_digest" in changed and name in _OF_THE_MODULE:
        return "module_digest"
    if name == "context_words" and (
        stored.granularity == "window" or asked.context_words != CONTEXT_WORDS_DEFAULT
    ):
        return ""  # else nobody asked for them: they came with the windows
    return next((cause for cause in _CAUSES.get(name, ()) if cause in changed), "")


def _of_files(what: str, stored: str, asked: str) -> tuple[str | None, str]:
    """What it means that a module's, or a preprocessor's, files have two digests."""
    noun = "preprocessor" if what == "preprocess" else what
    if not stored:
        return None, f"a {noun} whose handle was lost with the catalog"
    if stored == asked:
        return None, f"the same {noun}, whose files have changed"
    return f"--{what} {shlex.quote(stored)}", f"another {noun}"
